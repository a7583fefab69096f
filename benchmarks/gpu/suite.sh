#!/usr/bin/env bash
# What one GPU has to say in at most seven minutes, the most important first: how far bf16 is off, CMD's presets at
# 16x512x1024, where their time goes, their peers, a training step of each stage, VDMini's pruned models.
# Random weights at the true sizes; no network, no files but the results: six JSON files, written row by row.
#
#   benchmarks/gpu/suite.sh [OUT]                  on a GPU; OUT: a folder, default benchmarks/results/gpu
#   benchmarks/gpu/suite.sh --rehearse [OUT]       the same commands with small models on a CPU; default OUT: a new one
#
# PYTHON (default python3) runs it. SUITE_SECONDS (default 420, in a rehearsal 1200) is all it may take: each step has a
# share and is ended after it, and what no time is left for is skipped. A step that fails does not stop the others.
# Exit code: 0 = all there, 1 = a step failed, 3 = time was up before the end, 2 = it could not start.
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../.." && pwd)"
python="${PYTHON:-python3}"
rehearse=() total=420 device=cuda
if [[ "${1:-}" == --rehearse ]]; then
  rehearse=(--rehearse) total=1200 device=cpu
  shift
fi
budget="${SUITE_SECONDS:-$total}"
if [[ $# -gt 1 || "${1:-}" == -* || ! "$budget" =~ ^[0-9]+$ ]]; then
  sed -n '/^#   /s/^#   /usage: /p' "${BASH_SOURCE[0]}" >&2
  echo "SUITE_SECONDS is a whole number" >&2
  exit 2
fi
if [[ $# -eq 1 ]]; then
  out="$1"
elif ((${#rehearse[@]})); then
  out="$(mktemp -d)"
else
  out="$root/benchmarks/results/gpu"
fi
mkdir -p "$out" || exit 2
export PYTHONPATH="$root/src:$root/packages/cmd-video-sprites/src${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

failed=() cut=() skipped=() shares=0
step() {  # NAME SHARE: runs NAME.py with SHARE 420ths of the time, and what the steps before it have left of theirs
  local name="$1" start=$SECONDS limit status
  shares=$((shares + $2))
  limit=$((budget * shares / 420 - SECONDS))
  if ((limit < 5)); then
    skipped+=("$name")
    return
  fi
  echo "== $name, at most $limit s"
  timeout --kill-after=5 "$limit" "$python" "$here/$name.py" "${rehearse[@]}" --seconds $((limit * 9 / 10)) \
    -o "$out/$name.json"
  status=$?
  case $status in
    0) ;;
    3 | 124 | 137) cut+=("$name") ;;
    *) failed+=("$name") ;;
  esac
  echo "== $name: $((SECONDS - start)) s, exit code $status"
}

"$python" -c "
import accelerate, diffusers, psutil, torch, transformers
import cmd_video.benchmark.peers, cmd_video.evaluation.protocol.results, cmd_video.pruning.pruned_models
from cmd_video.benchmark.timing import check_device, describe_device
check_device('$device')
print(describe_device('$device'), 'torch', torch.__version__, 'diffusers', diffusers.__version__)
" || exit 2
step numerics 25
step presets 225
step profiles 30
step peers 45
step training 35
step vdmini 60

echo "== $SECONDS s of $budget; results in $out"
((${#failed[@]} == 0)) || echo "failed: ${failed[*]}"
((${#cut[@]} == 0)) || echo "time was up during: ${cut[*]}"
((${#skipped[@]} == 0)) || echo "skipped, no time was left: ${skipped[*]}"
((${#failed[@]} == 0)) || exit 1
((${#cut[@]} + ${#skipped[@]} == 0)) || exit 3
