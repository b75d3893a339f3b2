"""Today's onnxruntime in its own environment: what it computes, and with which operators."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

PYTHON = Path(os.environ.get("ONNXQAT_RUNTIME_PYTHON", Path(__file__).parents[1] / ".venv-runtime" / "bin" / "python"))
needs_stock = pytest.mark.skipif(
    not PYTHON.exists(), reason="no environment with stock onnxruntime (ONNXQAT_RUNTIME_PYTHON)"
)

_RUN = """
import sys, numpy, onnxruntime
folder, precise = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.optimized_model_filepath = folder + "/optimized.onnx"
if precise == "True":
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
outputs = session.run(None, dict(numpy.load(folder + "/inputs.npz")))
numpy.savez(folder + "/outputs.npz", **{f"{n:04}": output for n, output in enumerate(outputs)})
"""


def executed(
    proto: onnx.ModelProto, batch: dict[str, np.ndarray], *, precise: bool = False
) -> tuple[list[np.ndarray], onnx.GraphProto]:
    """Outputs, and the optimized graph.

    Args:
        proto: the model.
        batch: its inputs.
        precise: with `session.x64quantprecision`, the setting against saturation on processors without VNNI.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(proto, folder / "model.onnx")
        np.savez(folder / "inputs.npz", **batch)
        done = subprocess.run([PYTHON, "-c", _RUN, folder, str(precise)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        with np.load(folder / "outputs.npz") as found:
            graph = onnx.load(folder / "optimized.onnx", load_external_data=False).graph
            return [found[key] for key in sorted(found)], graph


def run(
    proto: onnx.ModelProto, batch: dict[str, np.ndarray], *, precise: bool = False
) -> tuple[list[np.ndarray], Counter[str]]:
    """Outputs, and how often each operator occurs in the optimized graph."""
    outputs, graph = executed(proto, batch, precise=precise)
    return outputs, Counter(node.op_type for node in graph.node)
