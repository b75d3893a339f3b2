"""QNN as the worker sees it: NumPy, onnxruntime and its package onnxruntime_qnn are all this file may import (see worker.py).

On x86-64 the package's library of the NPU is an emulator: its answers are the NPU's as far as Qualcomm's emulator is right, its
times say nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn as qnn
from numpy.typing import NDArray

PACKAGE = "onnxruntime-qnn"
_PROVIDER = "QNNExecutionProvider"
#: Snapdragon 8 Gen 3. Without these, float nodes reach the NPU as float32, which it cannot finalize or computes slowly.
_DEVICE = {"enable_htp_fp16_precision": "1", "soc_model": "60", "htp_arch": "75"}
#: Numbers of QNN's data types.
_TYPES = {0x0216: "f16", 0x0232: "f32", 0x0308: "sf8", 0x0316: "sf16", 0x0332: "sf32", 0x0408: "uf8", 0x0416: "uf16"}


def version() -> str:
    """Names and versions of the runtime."""
    return f"onnxruntime {ort.__version__} with QNN {qnn.__version__} (NPU emulated)"


def load(path: str, threads: int, simulate: bool) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Loads a model for the NPU, what it does not take for the CPU.

    Args:
        path: an ONNX file.
        threads: threads of the CPU.
        simulate: run on the CPU, quantizers in float as they stand in the graph.

    Returns:
        A function from inputs by name to outputs by name.
    """
    options = _options(threads)
    if simulate:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    else:
        session = _session(path, options)
    names = [value.name for value in session.get_outputs()]
    return lambda inputs: {n: np.asarray(v) for n, v in zip(names, session.run(names, inputs), strict=True)}


def executed(path: str, folder: str, threads: int) -> dict[str, Any]:
    """Division of a model between the NPU and the CPU.

    Returns:
        {"operators": one dict per operator of the NPU of name, type, type of its numbers, names of its outputs; "cpu": names of
        the nodes on the CPU, without the quantizers of the model's own inputs and outputs; "partitions": number of graphs of the
        NPU; "whole": whether a session is made as well where nothing may go to the CPU}.
    """
    options = _options(threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graphs = Path(tempfile.mkdtemp(dir=folder))
    session = _session(path, options, dump_json_qnn_graph="1", json_qnn_graph_dir=str(graphs))
    parts = session.get_provider_graph_assignment_info()
    cpu = [node.name for part in parts if part.ep_name != _PROVIDER for node in part.get_nodes() if _counts(node)]
    return {
        "operators": [operator for file in sorted(graphs.glob("*.json")) for operator in _operators(file)],
        "cpu": cpu,
        "partitions": sum(part.ep_name == _PROVIDER for part in parts),
        "whole": _is_whole(path, threads),
    }


def compiled(path: str, output: str, threads: int, device: dict[str, str]) -> None:
    """Writes a model of one node with what the NPU of a device loads; options of the provider name the device."""
    options = _options(threads)
    for key, value in (("enable", "1"), ("embed_mode", "1"), ("file_path", output)):
        options.add_session_config_entry(f"ep.context_{key}", value)
    _session(path, options, **device)


def _is_whole(path: str, threads: int) -> bool:
    options = _options(threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        _session(path, options)
    except Exception:
        return False
    return True


def _counts(node: Any) -> bool:
    """Whether a node on the CPU is none that the provider leaves there on purpose: quantizers of inputs and outputs."""
    return node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def _operators(file: Path) -> list[dict[str, Any]]:
    graph = json.loads(file.read_text(encoding="utf-8"))
    graph = graph.get("graph", graph)
    types: dict[str, int] = {name: tensor.get("data_type", 0) for name, tensor in graph.get("tensors", {}).items()}
    return [
        {
            "name": name,
            "type": str(node.get("type")),
            "numbers": _TYPES.get(types.get((node.get("output_names") or [""])[0], 0), "int"),
            "outputs": list(node.get("output_names") or []),
        }
        for name, node in graph.get("nodes", {}).items()
    ]


def _session(path: str, options: ort.SessionOptions, **more: str) -> ort.InferenceSession:
    backend = {"backend_path": qnn.get_qnn_htp_path()}
    options.add_provider_for_devices(_devices()[:1], {**backend, **_DEVICE, **more})
    return ort.InferenceSession(path, options)


@cache
def _devices() -> list[Any]:
    ort.register_execution_provider_library(_PROVIDER, qnn.get_library_path())
    return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return options
