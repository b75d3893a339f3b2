"""The networks: their files, and what every contestant reads, trains on and is judged by, whichever network it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]
#: A network that is judged: an input array → its output.
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: `cross_entropy` reads labels; the others distill the float network: KL divergence of classes, or the mean squared difference.
Loss = Literal["cross_entropy", "divergence", "squared"]


@dataclass(frozen=True)
class Net:
    """A network with one input and one output.

    Attributes:
        model: file of the float network.
        input: name of its input.
        loss: that training lowers.
        calibration: batches that quantizers are set on, by seed.
        training: batches in the order of a seed, as many as given; with labels under `label` where the loss reads them.
        judge: `test`, `validation` and `loss` of `Judged`.
    """

    model: Path
    input: str
    loss: Loss
    calibration: Callable[[int], Sequence[Batch]]
    training: Callable[[int, int], Iterable[Batch]]
    judge: Callable[[Run], dict[str, float]]


def net(name: str) -> Net:
    """A network by its name: one of `fashion.NETS` or `real.NETS`."""
    from tools.benchmark_few_bits import fashion, real

    return fashion.net(name) if name in fashion.NETS else real.net(name)


def cross_entropy(output: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.float32]:
    """Loss of each sample, from logits or probabilities."""
    return np.asarray(-np.take_along_axis(_log_probabilities(output), label.reshape(-1, 1), axis=1)[:, 0])


def divergence(output: NDArray[np.float32], teacher: NDArray[np.float32]) -> NDArray[np.float32]:
    """KL divergence of each sample from the teacher's classes, from logits or probabilities."""
    expected = _log_probabilities(teacher)
    return np.asarray((np.exp(expected) * (expected - _log_probabilities(output))).sum(axis=1))


def squared(output: NDArray[np.float32], teacher: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean squared difference of each sample."""
    return np.asarray(np.square(output - teacher).reshape(len(output), -1).mean(axis=1))


def _log_probabilities(output: NDArray[np.float32]) -> NDArray[np.float32]:
    probable = output.min() >= 0 and output.max() <= 1
    logits = np.log(np.maximum(output, 1e-12)) if probable else output
    peak = logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True)) - peak)
