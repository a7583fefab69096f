#!/usr/bin/env bash
# The GPU benchmark: numerics of bf16, all presets at 512x1024, two peers, batches of 1 and 4, training steps.
# Needs a CUDA build of torch and this package with its dependencies; no network, no weights (they are random, the
# sizes are the true ones). Its time on a GPU has not been measured. A step that fails is named and does not stop the others.
# Usage: [PYTHON=python3] benchmarks/gpu_suite.sh [OUTPUT_FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
out="${1:-benchmarks/results/gpu}"
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
failed=()
step() {  # NAME COMMAND...: runs the command, and remembers the name if it fails
  local name="$1"
  shift
  echo "== $name"
  timeout 240 "$@" || failed+=("$name")
}
bench() {  # NAME ARGUMENTS...
  local name="$1"
  shift
  step "$name" "$python" -m cmd_video.cli benchmark --device cuda --dtype bfloat16 --json "$out/$name.json" "$@"
}

"$python" -c "import torch, diffusers, transformers, peft, accelerate, pydantic, typer, yaml, av" || exit 1
step numerics "$python" benchmarks/gpu_numerics.py -o "$out/numerics.json"
presets=(cmd-sd21:quality cmd-sd21:fast cmd-sd21:turbo)
bench cmd-presets "${presets[@]}" --resolution 512x1024
bench cmd-presets-compiled "${presets[@]}" --resolution 512x1024 --compile --runs 10
bench cmd-turbo-L cmd-sd21:turbo --resolution 512x1024 --motion-size L
bench cmd-quality-b4 cmd-sd21:quality --resolution 512x1024 --batch 4 --runs 5
bench peers modelscope ltx-video-2b --resolution 512x1024 --runs 5
bench modelscope-b4 modelscope --resolution 512x1024 --batch 4 --runs 3
bench training --training --resolution 512x512
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
