"""NNCF: `nncf.quantize`, then training of the quantized module. Runs in the peers' environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# NNCF compiles an extension on first use, by the ninja beside its interpreter, however long that takes.
os.environ["NNCF_EXTENSION_LOAD_TIMEOUT"] = "0"
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import nncf
import torch
from torch import fx, nn

from tools.benchmark_few_bits import torch_run
from tools.benchmark_few_bits.task import Judged, Task
from tools.benchmark_few_bits.torch_net import folded


def run(task: Task) -> dict[str, Judged]:
    """See `torch_run.run`; NNCF's quantizers of convolutions have 8 bits, and so have its compressed weights of them."""

    def quantized(net: fx.GraphModule, images: torch.Tensor) -> nn.Module:
        samples = list(images.split(1))
        return nncf.quantize(_Module(folded(net)), nncf.Dataset(samples), subset_size=len(samples))

    return torch_run.run(task, quantized, training=True)


class _Module(nn.Module):
    """The network as a module of users: NNCF takes a bare GraphModule for an exported program."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The network's logits."""
        return self.net(images)
