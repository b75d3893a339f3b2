#!/usr/bin/env bash
# Trains two networks on a GPU with stock onnxruntime-gpu and prints ratios; where no GPU is, the same on the CPU, with small batches.
# usage: tools/check_gpu.sh [python to make the environment with; where no GPU is, python to run with]
# Takes at most ten minutes after the downloads. The newest onnxruntime-gpu and torch share one CUDA 13, whose driver is 580 or newer.
set -eu
cd "$(dirname "$0")/.."
if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep -q GPU; then
    environment=.venv-gpu
    "${1:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet torch
    "$environment/bin/pip" install --quiet .
    "$environment/bin/pip" uninstall --quiet --yes onnxruntime-training-cpu onnxruntime
    "$environment/bin/pip" install --quiet 'onnxruntime-gpu[cuda,cudnn]'
    exec timeout 600 "$environment/bin/python" -m tools.check_gpu --provider cuda --batch 32
fi
echo "no GPU is here: the same runs on the CPU, with small batches"
exec timeout 600 "${1:-.venv/bin/python}" -m tools.check_gpu --provider cpu --batch 2
