"""ONNX Runtime as the worker sees it: NumPy and onnxruntime are all this file may import (see worker.py)."""

from __future__ import annotations

import json
from collections import defaultdict
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
    # up to 1.32.0 they drop a Relu in front of a QuantizeLinear to E4M3, as if its lowest code were 0, and fail at a Clip
    without = ["ReluQuantRewrite", "ClipQuantRewrite"] if simulate else []
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)
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


def profile(path: str, folder: str, threads: int, inputs: dict[str, NDArray[Any]], rounds: int) -> dict[str, float]:
    """Median time of each node that the runtime executes, in milliseconds, by the node's name in its optimized graph."""
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "profile")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(rounds + 1):
        session.run(None, inputs)
    taken: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e3)
    return {name: float(np.median(times[1:])) for name, times in taken.items() if len(times) > 1}  # the first warms up


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = (
        4  # errors come as exceptions; below that it warns of the optimized graph being for this CPU only
    )
    return options
