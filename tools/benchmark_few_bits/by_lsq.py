"""Reference of learned step sizes (Esser et al. 2020, "Learned Step Size Quantization") in PyTorch, with scales per channel.

The first scales are those of the least squared error, of weights and of what layers read in the float network. Settings: `keep`,
whether normalizations stay, with their statistics estimated on the quantized network; without it they are folded.
"""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from tools.benchmark_few_bits import torch_run
from tools.benchmark_few_bits.task import Judged, Task
from tools.benchmark_few_bits.torch_net import estimate_statistics, folded, layers, normalized, observed

#: Shares of the largest magnitude that are tried as ends of the range, and values that they are tried on.
SHARES, VALUES = torch.linspace(1, 0.02, 99), 100_000


def run(task: Task) -> dict[str, Judged]:
    """See `torch_run.run`."""
    keep = bool(task.settings.get("keep"))

    def quantized(net: fx.GraphModule, images: torch.Tensor) -> nn.Module:
        net = normalized(net, images) if keep else folded(net)
        learned(net, images, task.bits)
        if keep:
            estimate_statistics(net, images)
        return net

    return torch_run.run(task, quantized, training=keep)


def learned(net: fx.GraphModule, images: torch.Tensor, bits: int) -> None:
    """Puts learned quantizers before the layers and on their weights."""
    names = layers(net)
    read = observed(net, names, images)
    for name, width in torch_run.widths(names, bits).items():
        layer = net.get_submodule(name)
        weight = Quantizer(layer.weight.detach(), width, signed=True, per_channel=True)
        data = Quantizer(read[name], width, signed=bool(read[name].min() < 0), per_channel=False)
        net.set_submodule(name, nn.Sequential(data, _Layer(layer, weight)))


class Quantizer(nn.Module):
    """Quantizes and dequantizes with scales that are learned.

    Args:
        sample: what it will quantize, or an example of it with samples on the first axis.
        bits: width.
        signed: whether codes go below 0.
        per_channel: whether each index of the first axis has a scale of its own.
    """

    def __init__(self, sample: torch.Tensor, bits: int, *, signed: bool, per_channel: bool) -> None:
        super().__init__()
        self.qmax = 2 ** (bits - signed) - 1
        self.qmin = -self.qmax if signed else 0
        shape = [len(sample) if per_channel else 1] + [1] * (sample.ndim - 1)
        rows = sample.reshape(shape[0], -1)
        self.scale = nn.Parameter(self._least_error(rows).reshape(shape))
        self.factor = 1 / math.sqrt(sample[0].numel() * self.qmax)  # section 2.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Equations 1 to 3: the gradient of rounding is 1, that of the scale is multiplied by `factor`."""
        scale = (self.scale - self.scale * self.factor).detach() + self.scale * self.factor
        codes = torch.clamp(x / scale, self.qmin, self.qmax)
        return ((codes.round() - codes).detach() + codes) * scale

    def _least_error(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows[:, :: max(1, rows.shape[1] // VALUES)]
        peaks = rows.abs().amax(1, keepdim=True).clamp_min(1e-8)
        best, scales = torch.full_like(peaks, torch.inf), peaks / self.qmax
        for share in SHARES:
            scale = peaks * share / self.qmax
            codes = (rows / scale).round().clamp(self.qmin, self.qmax)
            error = (codes * scale - rows).square().mean(1, keepdim=True)
            scales = torch.where(error < best, scale, scales)
            best = torch.minimum(error, best)
        return scales


class _Layer(nn.Module):
    """A layer whose weight is quantized."""

    def __init__(self, layer: nn.Module, weight: Quantizer) -> None:
        super().__init__()
        self.layer, self.weight = layer, weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result."""
        weight = self.weight(self.layer.weight)
        return torch.func.functional_call(self.layer, {"weight": weight}, (x,))
