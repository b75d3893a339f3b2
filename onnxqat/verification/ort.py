"""ONNX Runtime as the worker sees it: NumPy and onnxruntime are all this file may import (see worker.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

PACKAGE = "onnxruntime"


def version() -> str:
    """Name and version of the runtime."""
    return f"onnxruntime {ort.__version__}"


def load(path: str, threads: int, simulate: bool) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Loads a model for the CPU.

    Args:
        path: an ONNX file.
        threads: threads of one operator.
        simulate: compute quantizers as they stand in the graph, in float, instead of fusing them into integer kernels.

    Returns:
        A function from inputs by name to outputs by name.
    """
    options = _options(threads)
    if simulate:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        nonlocal session
        values = session.run(names, inputs)
        if any(value is None for value in values):  # 1.19 fuses away an output that a node behind it reads
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            values = session.run(names, inputs)
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

    return run


def executed(path: str, folder: str, threads: int) -> dict[str, Any]:
    """Writes the graph that the runtime would execute: the model after all of its optimizations.

    Returns:
        {"model": path of the optimized graph}; it is made for this machine, with large weights beside it.
    """
    options = _options(threads)
    options.optimized_model_filepath = str(Path(folder) / "executed.onnx")
    if Path(
        f"{path}.data"
    ).exists():  # too large for one file; else in one, since 1.19.2 fails to split some 4-bit weights off
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "executed.data")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return {"model": options.optimized_model_filepath}


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = (
        4  # errors come as exceptions; below that it warns of the optimized graph being for this CPU only
    )
    return options
