#!/usr/bin/env bash
# A stage of configs/sprites-128 on one GPU, for some minutes; README.md beside this file says in which order.
# Usage: [PYTHON=python3] benchmarks/gpu/train.sh STAGE MINUTES [--rehearse] [--home FOLDER] [-o FOLDER] ...
# STAGE: autoencoder, image, content, motion, turbo-content, turbo-content-matching, or clips.
set -euo pipefail
cd "$(dirname "$0")/../.."
if (($# < 2)); then
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
fi
stage="$1" minutes="$2"
shift 2
export PYTHONPATH="$PWD/src:$PWD/packages/cmd-video-sprites/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu/train.py "$stage" "$minutes" --home runs/home -o runs/home "$@"
