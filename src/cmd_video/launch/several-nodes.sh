#!/usr/bin/env bash
# Training on several machines without a scheduler; the same on each: bash several-nodes.sh [--set FIELD=VALUE ...]
# Clips, components and output_dir lie on a disk that all see. Given again it goes on from the newest checkpoint.
set -euo pipefail

recipe=${RECIPE:-configs/webvid-sd15/motion.yaml} # training configuration
nodes=${NODES:-4}                                 # machines
gpus=${GPUS:-8}                                   # processes on each, one for each GPU
first=${FIRST:-node0:29500}                       # one of the machines, and a port that is free there
restarts=${RESTARTS:-3}                           # how often to begin again when a process is lost
shard=${SHARD:-$gpus}                             # GPUs that hold one copy of the model; 1 = each holds all of it

parallel=()
if [ "$shard" -gt 1 ]; then
    parallel=(--set "loop.parallel.shard=$shard" --set "loop.parallel.replicate=$((nodes * gpus / shard))")
fi
torchrun --nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "$restarts" \
    --rdzv-backend c10d --rdzv-endpoint "$first" -m cmd_video.cli train "$recipe" "${parallel[@]}" "$@"
