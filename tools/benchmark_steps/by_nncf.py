"""NNCF's quantization-aware step; runs in NNCF's environment (see requirements-nncf.txt)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# NNCF compiles an extension on first use, by the ninja beside its interpreter, however long that takes.
os.environ["NNCF_EXTENSION_LOAD_TIMEOUT"] = "0"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import nncf
import torch
from nncf.torch.quantization.extensions import QuantizedFunctionsCPU
from nncf.torch.quantization.reference import ReferenceQuantizedFunctions

from tools.benchmark_steps.by_torch import batch, module, stepping


def step(folder: Path, loss: str, threads: int, *, channels_last: bool = False) -> Callable[[], object]:
    """Forward, backward and update of the network as `nncf.quantize` wraps it."""
    torch.set_num_threads(threads)
    data, labels = batch(folder, channels_last=channels_last)
    network = module(folder, channels_last=channels_last)
    quantized = nncf.quantize(network, nncf.Dataset([data[:2]]), subset_size=1)
    if QuantizedFunctionsCPU.get("Quantize_forward") == ReferenceQuantizedFunctions.Quantize_forward:
        raise SystemExit(
            "NNCF: could not compile its extension, without which its step is slower; install a C++ compiler"
        )
    return stepping(quantized, torch.optim.AdamW(quantized.parameters(), lr=1e-5), loss, data, labels)
