"""Fashion-MNIST as every contestant reads it: the same images in the same order for the same seed; needs NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np

from models import fashion_mnist
from tools.benchmark_few_bits.nets import Batch, Net, Run, cross_entropy

MODELS = Path(fashion_mnist.__file__).parent
#: Axis of channels in the images that each network takes.
NETS = {"resnet20": 1, "separable": 3}
#: Images of a training batch, and of calibration.
ROWS, CALIBRATION = 128, 512


def net(name: str) -> Net:
    """A network with its images."""
    axis = NETS[name]
    return Net(
        MODELS / f"{name}.onnx",
        "image",
        "cross_entropy",
        lambda seed: list(calibration(axis, seed)),
        lambda seed, steps: Training(axis, seed, steps),
        lambda run: _judged(run, axis),
    )


@dataclass(frozen=True)
class Training:
    """Training batches: flipped and shifted images of the 59,000, epoch after epoch.

    Attributes:
        channel_axis: of the images.
        seed: of the order, and of flips and shifts.
        steps: number of batches.
    """

    channel_axis: int
    seed: int
    steps: int

    def __len__(self) -> int:
        """Number of batches."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """Batches of `ROWS` images."""
        return islice(self._endless(), self.steps)

    def _endless(self) -> Iterator[Batch]:
        halves = _full(self.channel_axis)
        for epoch in count(1000 * self.seed):
            halves.set_epoch(epoch)
            each = iter(halves)
            for one, other in zip(each, each, strict=False):
                yield {name: np.concatenate([one[name], other[name]]) for name in one}


def calibration(channel_axis: int, seed: int, images: int = CALIBRATION) -> fashion_mnist.Batches:
    """Training images that quantizers are set on, drawn by the seed, neither flipped nor shifted."""
    full = _full(channel_axis)
    chosen = np.random.default_rng(seed).permutation(len(full.labels))[:images]
    return fashion_mnist.Batches(full.images[chosen], full.labels[chosen], channel_axis, augment=False)


def validation(channel_axis: int) -> fashion_mnist.Batches:
    """The 1,000 images by which rates are chosen."""
    return fashion_mnist.validation() if channel_axis == 1 else fashion_mnist.validation_nhwc()


def test(channel_axis: int) -> fashion_mnist.Batches:
    """The 10,000 images that judge, and choose nothing."""
    return fashion_mnist.test() if channel_axis == 1 else fashion_mnist.test_nhwc()


def _judged(run: Run, channel_axis: int) -> dict[str, float]:
    right, _ = _scores(run, test(channel_axis))
    validated, loss = _scores(run, validation(channel_axis))
    return {"test": right, "validation": validated, "loss": loss}


def _scores(run: Run, batches: fashion_mnist.Batches) -> tuple[float, float]:
    """Accuracy and mean cross entropy."""
    output = np.concatenate([run(batch["image"]) for batch in batches])
    return float((output.argmax(1) == batches.labels).mean()), float(cross_entropy(output, batches.labels).mean())


def _full(channel_axis: int) -> fashion_mnist.Batches:
    return fashion_mnist.train_full() if channel_axis == 1 else fashion_mnist.train_full_nhwc()
