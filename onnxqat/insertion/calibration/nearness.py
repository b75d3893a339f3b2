"""Distances of quantized models' outputs to the float model's, by which a change of the whole model is judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.distributed import Workers

Outputs = Mapping[str, NDArray[Any]]

#: Share to which a larger error must bring down what is unexplained.
MADE_UP = 0.98


class Distance(NamedTuple):
    """Distance of the outputs of two models, a mean over the outputs.

    Attributes:
        error: mean squared error, over the variance of the float model's output.
        unexplained: share of that variance which no multiple of the other output explains, 1 - correlation².
    """

    error: float
    unexplained: float

    def exceeds(self, other: Distance) -> bool:
        """Whether the error is larger, and not made up for: a smaller output may have the smaller error, and say less."""
        return self.error > other.error and self.unexplained > MADE_UP * other.unexplained


def float_outputs(model: ir.Model) -> list[str]:
    """Names of the outputs by which distances are measured."""
    return [str(value.name) for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]


def distances(
    names: Sequence[str], answers: Iterable[tuple[Outputs, Outputs, Outputs]], workers: Workers
) -> tuple[Distance, Distance]:
    """The distances of two models' outputs to the float model's.

    Args:
        names: names of the outputs.
        answers: outputs of the float model and of the two, batch by batch.
        workers: the processes; each has its own batches.
    """
    sums = np.zeros((2, len(names), 4))
    for meant, *both in answers:
        for index, name in enumerate(names):
            sums[:, index] += [_products(meant[name], found[name]) for found in both]
    first, second = np.sum([theirs["sums"] for theirs in workers.gather({"sums": sums})], axis=0)
    return _distance(first), _distance(second)


def _products(meant: NDArray[np.float32], found: NDArray[np.float32]) -> list[float]:
    """Sums over a batch: of squared errors, and of the products of what deviates from the mean over its samples.

    Zeros where the number of entries depends on values, and is another in the quantized model.
    """
    if meant.shape != found.shape:
        return [0.0] * 4
    f, q = (array.astype(np.float64) for array in (meant, found))
    with np.errstate(invalid="ignore", over="ignore"):  # outputs may be infinite: no distance exceeds another then
        error = np.square(f - q).sum()
        f, q = (each - (each.mean(axis=0) if each.ndim and len(each) > 1 else each.mean()) for each in (f, q))
        return [error, np.square(f).sum(), np.square(q).sum(), (f * q).sum()]


def _distance(sums: NDArray[np.float64]) -> Distance:
    errors, own, others, both = sums.T
    some = np.where(own > 0, own, 1.0)
    explained = np.square(both) / (some * np.where(others > 0, others, 1.0))
    return Distance(float((errors / some).mean()), float(1 - explained.mean()))
