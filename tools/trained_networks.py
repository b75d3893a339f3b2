"""A BERT-like, a recurrent and a U-Net-like network trained on Fashion-MNIST in PyTorch, made at first use in `.cache/networks`.

The first two read the rows of an image as words and name its class. The third says for each pixel of a noisy image whether it
shows a garment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import onnxqat.export.torch
from models import fashion_mnist

FOLDER = Path(__file__).parents[1] / ".cache" / "networks"
EPOCHS = {"bert": 6, "lstm": 6, "unet": 2}

Batch = dict[str, np.ndarray]


class Layer(nn.Module):
    """Attention and a feed-forward network, each with a skip and a normalization behind it (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, words, width] to the same."""
        count, words, width = x.shape
        shape = (count, words, self.heads, width // self.heads)
        query, key, value = (linear(x).reshape(shape).transpose(1, 2) for linear in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5
        mixed = (functional.softmax(scores, -1) @ value).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.mix(mixed))
        return self.norm2(x + self.narrow(functional.gelu(self.wide(x))))


class Bert(nn.Module):
    """An encoder of two layers over the 28 rows of an image."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.place = nn.Parameter(torch.randn(28, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.classifier = nn.Linear(width, len(fashion_mnist.CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [N, 1, 28, 28] to logits [N, 10]."""
        return self.classifier(self.layers(self.embed(image.squeeze(1)) + self.place).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the 28 rows of an image (Hochreiter and Schmidhuber 1997)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(28, width), nn.LSTM(width, width, batch_first=True)
        self.classifier = nn.Linear(width, len(fashion_mnist.CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [N, 1, 28, 28] to logits [N, 10]."""
        states, _ = self.lstm(torch.relu(self.embed(image.squeeze(1))))
        return self.classifier(states[:, -1])


class Double(nn.Sequential):
    """Two convolutions with normalization and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        parts: list[nn.Module] = []
        for channels in (inputs, outputs):
            parts += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*parts)


class UNet(nn.Module):
    """Contracting and expanding convolutions with skips (Ronneberger et al. 2015), two classes of pixels."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList([Double(1, width), Double(width, 2 * width)])
        self.bottom = Double(2 * width, 4 * width)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.join = nn.ModuleList([Double(4 * width, 2 * width), Double(2 * width, width)])
        self.classifier = nn.Conv2d(width, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [N, 1, 28, 28] to logits [N, 2, 28, 28]."""
        skips = []
        for double in self.down:
            image = double(image)
            skips.append(image)
            image = functional.max_pool2d(image, 2)
        image = self.bottom(image)
        for up, join in zip(self.up, self.join, strict=True):
            image = join(torch.cat([skips.pop(), up(image)], 1))
        return self.classifier(image)


MODULES = {"bert": Bert, "lstm": Recurrent, "unet": UNet}


def batches(name: str, part: str) -> list[Batch]:
    """Batches of a part of the data ("train", "calibration", "test"), as that network takes them."""
    found = list(getattr(fashion_mnist, part)())
    return list(_noisy(found)) if name == "unet" else found


def path(name: str) -> Path:
    """File of the float model, which is trained and exported first where it is not there."""
    file = FOLDER / f"{name}.onnx"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        onnxqat.export.torch.export(_trained(name), torch.zeros(2, 1, 28, 28), file)
    return file


def _noisy(found: list[Batch]) -> Iterator[Batch]:
    """Images under noise; a pixel belongs to a garment where it is not black."""
    random = np.random.default_rng(0)
    for batch in found:
        image = batch["image"]
        garment = image[:, 0] > (0.1 - fashion_mnist.MEAN) / fashion_mnist.DEVIATION
        noise = random.normal(0, 1, image.shape).astype(np.float32)
        yield {"image": image + noise, "label": garment.astype(np.int64)}


def _trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name]()
    data = batches(name, "train")
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, EPOCHS[name] * len(data), pct_start=0.2)
    for _ in range(EPOCHS[name]):
        for batch in data:
            loss = functional.cross_entropy(module(torch.from_numpy(batch["image"])), torch.from_numpy(batch["label"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()
