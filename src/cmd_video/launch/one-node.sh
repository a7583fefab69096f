#!/usr/bin/env bash
# Training on the GPUs of one machine: bash one-node.sh [--set FIELD=VALUE ...]
# Given again it goes on from the newest checkpoint.
set -euo pipefail

recipe=${RECIPE:-configs/webvid-sd15/motion.yaml} # training configuration
gpus=${GPUS:-8}                                   # processes, one for each GPU
shard=${SHARD:-$gpus}                             # GPUs that hold one copy of the model; 1 = each holds all of it

parallel=()
if [ "$shard" -gt 1 ]; then
    parallel=(--set "loop.parallel.shard=$shard" --set "loop.parallel.replicate=$((gpus / shard))")
fi
torchrun --nproc-per-node "$gpus" -m cmd_video.cli train "$recipe" "${parallel[@]}" "$@"
