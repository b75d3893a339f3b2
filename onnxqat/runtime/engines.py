"""Engines that run training graphs: the training build of ONNX Runtime with kernels of its own, or any other build."""

from __future__ import annotations

from functools import cache
from typing import get_args

import onnx
import onnxruntime as ort

from onnxqat.autodiff.lowering import OF_RUNTIME, OF_TRAINING
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.names import EngineName, OperatorsOf
from onnxqat.runtime import TRAINING_PYTHONS, session

_PROBE = """
<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
probe (float[1] x, bool[1] mask) => (float[1] y) { y = com.microsoft.FakeQuantGrad (x, mask) }
"""


def chosen(engine: EngineName) -> EngineName:
    """The engine that a name means here: `auto` is `training` where the installed ONNX Runtime can.

    Raises:
        InputError: there is no such engine, or it is not installed.
    """
    if engine not in get_args(EngineName):
        raise InputError(f"engine {engine!r}: not known; use {', '.join(get_args(EngineName))}")
    if engine == "training" and not _has_training_kernels():
        raise InputError(
            f"engine 'training': onnxruntime {ort.__version__} lacks its kernels; install onnxqat with "
            f"onnxruntime-training-cpu (Python {TRAINING_PYTHONS}), or use the engine runtime"
        )
    return "runtime" if engine == "runtime" or not _has_training_kernels() else "training"


def kernels(engine: OperatorsOf) -> frozenset[str]:
    """Backward kernels that an engine has (see `chosen`); the standard has none."""
    if engine == "standard":
        return frozenset()
    return OF_TRAINING if chosen(engine) == "training" else OF_RUNTIME


@cache
def _has_training_kernels() -> bool:
    try:
        session(onnx.parser.parse_model(_PROBE), ort.SessionOptions())
    except UnsupportedModelError:
        return False
    return True
