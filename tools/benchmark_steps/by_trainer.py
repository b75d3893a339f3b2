"""Our own step: `Trainer.step`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import onnxqat


def step(folder: Path, loss: str, **options: Any) -> Callable[[], object]:
    """A step of a `Trainer` with these options."""
    trainer = onnxqat.Trainer(folder / "qdq.onnx", loss, onnxqat.AdamW(lr=1e-5), **options)
    with np.load(folder / "batch.npz") as arrays:
        batch = dict(arrays)
    return lambda: trainer.step(batch)
