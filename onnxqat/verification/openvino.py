"""OpenVINO as the worker sees it: NumPy and openvino are all this file may import (see worker.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

PACKAGE = "openvino"
#: Keys of a layer's runtime information that the fusion report reads.
_KEYS = ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")


def version() -> str:
    """Name and version of the runtime."""
    return f"OpenVINO {ov.__version__.split('-')[0]}"


def load(path: str, threads: int, simulate: bool) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Loads a model for the CPU, its float parts in float32 (the CPU plugin takes bfloat16 where it can, unless told).

    Args:
        path: an ONNX file.
        threads: threads to use.
        simulate: compute quantizers in float as they stand in the graph, instead of running layers on integers.

    Returns:
        A function from inputs by name to outputs by name.
    """
    settings = {"LP_TRANSFORMS_MODE": "NO"} if simulate else {}
    compiled = _compile(path, threads, settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # one call of the compiled model reuses its output memory in the next: copy
        return {n: np.array(v) for n, v in zip(names, compiled(inputs).values(), strict=True)}

    return run


def executed(path: str, folder: str, threads: int) -> dict[str, Any]:
    """The layers that the runtime executes, in order.

    Returns:
        {"layers": one dict per layer of type, precision, primitive and the names of the model's nodes that it computes}.
    """
    del folder
    layers = []
    for layer in _compile(path, threads, {}).get_runtime_model().get_ordered_ops():
        info = layer.get_rt_info()
        layers.append({key: _text(info[key]) for key in _KEYS if key in info})
    return {"layers": layers}


def _compile(path: str, threads: int, settings: dict[str, str]) -> Any:
    core = _core()
    common = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return core.compile_model(core.read_model(path), "CPU", {**common, **settings})


@cache
def _core() -> Any:
    """The one core of the process, never let go.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and takes it away from the thread that unloads it:
    where these differ, the next signal would end the process.
    """
    return ov.Core()


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)
