#!/usr/bin/env bash
# Models of the target tensorrt in TensorRT itself: types of the engines' layers, times beside float16, answers beside the simulation.
# Where no GPU is, TensorRT-RTX, which compiles for GPUs that are elsewhere, builds the engines, and none is run; .cache/tensorrt can
# then go, with tools/tensorrt_engines.py, to a machine with a GPU, and what that writes come back to `tools.check_tensorrt --judge`.
# usage: tools/check_tensorrt.sh [python that makes the models] [python to make the environment of TensorRT with]
set -eu
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
"$python" -m tools.check_tensorrt --make --only {resnet20,separable,bert,unet,lstm}/tensorrt{,-fp8}
environment=.venv-tensorrt
"${2:-python3}" -m venv "$environment"
if command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep -q GPU; then
    "$environment/bin/pip" install --quiet torch tensorrt numpy
    "$environment/bin/python" tools/tensorrt_engines.py .cache/tensorrt
    exec "$python" -m tools.check_tensorrt --judge
fi
"$environment/bin/pip" install --quiet numpy tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116
exec "$environment/bin/python" tools/tensorrt_engines.py --build .cache/tensorrt
