#!/usr/bin/env bash
# Builds TensorRT engines of deployed models on a GPU; prints their layers' precisions, times beside float16, and answers beside the
# simulation. Where no GPU is, the models are made and checked, and no engine is built.
# usage: tools/check_tensorrt.sh [python to make the environment with; where no GPU is, python to run with]
set -eu
cd "$(dirname "$0")/.."
if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep -q GPU; then
    environment=.venv-tensorrt
    "${1:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet torch tensorrt
    "$environment/bin/pip" install --quiet .
    exec "$environment/bin/python" -m tools.check_tensorrt
fi
echo "no GPU is here: the models are made and checked, and no engine is built"
exec "${1:-.venv/bin/python}" -m tools.check_tensorrt --without-engines
