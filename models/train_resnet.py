"""Train ResNet-20 on Fashion-MNIST in PyTorch and export it to models/resnet20.onnx.

python -m tools.fetch_fashion_mnist && python -m models.train_resnet
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import onnxqat.export.torch
from models import fashion_mnist

OUTPUT = Path(__file__).with_name("resnet20.onnx")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: He et al. 2016, figure 2; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, n = 3: three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.stage2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.stage3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, len(fashion_mnist.CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images [N, 1, 28, 28] to logits [N, 10]."""
        x = functional.relu(self.norm(self.conv(image)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(self.pool(x).flatten(1))


def accuracy(module: nn.Module, batches: fashion_mnist.Batches) -> float:
    """Return the share of right answers, 0…1."""
    module.eval()
    with torch.no_grad():
        right = [
            (module(torch.from_numpy(batch["image"])).argmax(1).numpy() == batch["label"]).sum() for batch in batches
        ]
    return float(np.sum(right) / len(batches.labels))


def train(epochs: int, seed: int, rate: float = 0.1) -> ResNet20:
    """Train with SGD (momentum 0.9, decay 5e-4) under one cycle of the learning rate; the last epoch's model is kept."""
    torch.manual_seed(seed)
    module = ResNet20().to(memory_format=torch.channels_last)
    batches = fashion_mnist.train_full()
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(batches), pct_start=0.2)
    for epoch in range(epochs):
        start, total = time.monotonic(), 0.0
        batches.set_epoch(epoch)
        module.train()
        for batch in batches:
            image = torch.from_numpy(batch["image"]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(module(image), torch.from_numpy(batch["label"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        held_out = accuracy(module, fashion_mnist.validation())
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total / len(batches):.4f}, validation {held_out:.2%}, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    return module.to(memory_format=torch.contiguous_format)


def main() -> None:
    """Train, print the accuracy on the 10,000 test images, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    module = train(arguments.epochs, arguments.seed)
    print(f"test accuracy {accuracy(module, fashion_mnist.test()):.2%}")
    onnxqat.export.torch.export(module, torch.zeros(2, 1, 28, 28), OUTPUT)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
