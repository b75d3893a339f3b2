"""Our step in PyTorch's loop: `as_module`, with PyTorch's loss and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from onnxqat.torch import as_module
from tools.benchmark_steps.by_torch import batch, stepping


def step(folder: Path, loss: str, threads: int) -> Callable[[], object]:
    """Forward, backward and update; PyTorch's own threads would wait for ours, and have little to do."""
    torch.set_num_threads(1)
    module = as_module(folder / "qdq.onnx", threads=threads)
    data, labels = batch(folder)
    return stepping(module, torch.optim.AdamW(module.groups(lr=1e-5), fused=True), loss, data, labels)
