#!/usr/bin/env bash
# The GPU benchmark: numerics of bf16, all presets at 512x1024, two peers, batches of 1 and 4, training steps.
# Needs a CUDA build of torch and this package; no network, no weights (they are random, the sizes are the true ones).
# About 8 minutes on an H200. Usage: benchmarks/gpu_suite.sh [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-benchmarks/results/gpu}"
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
bench() { python -m cmd_video.cli benchmark --device cuda --dtype bfloat16 --resolution 512x1024 "$@"; }

python benchmarks/gpu_numerics.py -o "$out/numerics.json"
for preset in quality fast turbo; do
  bench cmd-sd21 --preset "$preset" --json "$out/cmd-$preset.json"
done
bench cmd-sd21 --preset turbo --motion-size L --json "$out/cmd-turbo-L.json"
bench cmd-sd21 --preset quality --compile --json "$out/cmd-quality-compiled.json"
bench cmd-sd21 --preset turbo --compile --json "$out/cmd-turbo-compiled.json"
bench cmd-sd21 --preset quality --batch 4 --runs 5 --json "$out/cmd-quality-b4.json"
bench modelscope ltx-video-2b --runs 5 --json "$out/peers.json"
bench modelscope --batch 4 --runs 3 --json "$out/modelscope-b4.json" || echo "ModelScope, batch 4: does not fit this GPU"
python -m cmd_video.cli benchmark --training --device cuda --dtype bfloat16 --resolution 512x512 --json "$out/training.json"
