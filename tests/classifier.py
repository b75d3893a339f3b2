"""A small classifier with its data, in memory and in files, for tests that try broken copies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from onnxqat.graph import io
from onnxqat.insertion import insert
from tests.models import model, random

NET = "(float[N,8] x) => (float[N,3] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
WEIGHTS = {"w": random(8, 6), "b": random(6), "v": random(6, 3), "c": random(3)}
ROWS = random(16, 8, scale=1.0)
LABELS = np.arange(16) % 3


def write(folder: Path) -> Path:
    """Writes the float model, its Q/DQ model and labelled data into a folder; returns the folder."""
    proto = model(NET, **WEIGHTS)
    onnx.save(proto, folder / "float.onnx")
    io.save(insert(proto, [ROWS]), folder / "qdq.onnx")
    np.savez(folder / "data.npz", x=ROWS, label=LABELS)
    return folder
