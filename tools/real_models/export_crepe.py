"""The pitch tracker CREPE (Kim et al. 2018), size tiny: six blocks with Relu before BatchNormalization."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxqat.export.torch import export as export_torch

CHANNELS = (1, 128, 16, 16, 16, 32, 64)
KERNELS = (512, 64, 64, 64, 64, 64)
PADDING = ((254, 254), *[(31, 32)] * 5)
FRAME, BINS = 1024, 360


class Crepe(nn.Module):
    """Frames of 1,024 samples at 16 kHz [N, 1024] → how likely each of 360 pitches is [N, 360]; named as in torchcrepe."""

    def __init__(self) -> None:
        super().__init__()
        for i, (inside, outside, kernel) in enumerate(zip(CHANNELS[:-1], CHANNELS[1:], KERNELS, strict=True), 1):
            self.add_module(f"conv{i}", nn.Conv2d(inside, outside, (kernel, 1), (4 if i == 1 else 1, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(outside, eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        x = frames[:, None, :, None]
        for i, padding in enumerate(PADDING, 1):
            x = functional.relu(self.get_submodule(f"conv{i}")(functional.pad(x, (0, 0, *padding))))
            x = functional.max_pool2d(self.get_submodule(f"conv{i}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))


def export(source: Path, target: Path) -> None:
    """Exports the weights in `source` (torchcrepe's tiny.pth)."""
    module = Crepe()
    module.load_state_dict(torch.load(source, map_location="cpu", weights_only=True))
    export_torch(module, torch.randn(2, FRAME), target)
