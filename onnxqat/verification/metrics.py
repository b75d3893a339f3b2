"""Metrics: a metric is a function from an output and its labels to one value per sample or decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions, aligned
from onnxqat.errors import InputError
from onnxqat.process.foreign import guarded

Array = NDArray[Any]
Metric = Callable[[Array, Array], Array]

#: A perfect reconstruction counts as 100 dB, so that means stay finite.
LEAST_ERROR = 1e-10
BEST = 5


def accuracy(output: Array, label: Array, decisions: Decisions) -> Array:
    """1 where the decision is the label's, else 0, for those that count (see `labels`): [decisions]."""
    return np.asarray(decisions.hits(output, label), np.float64)


def binary_accuracy(output: Array, label: Array, decisions: Decisions) -> Array:
    """1 where an element is on the side of the threshold that its label, between 0 and 1, is on: [decisions]."""
    return np.asarray(decisions.side_hits(output, label), np.float64)


def top5(output: Array, label: Array, decisions: Decisions) -> Array:
    """1 where the label is among the five classes of the largest scores, for those that count: [decisions]."""
    numbers = decisions.numbers(label, output.shape)
    scores = np.moveaxis(output, decisions.class_axis(output), -1)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :BEST]
    return np.asarray((best == numbers[..., None]).any(axis=-1)[decisions.counted(numbers)], np.float64)


def mse(output: Array, label: Array, decisions: Decisions) -> Array:
    """Mean squared difference of each sample: [N]."""
    difference = output.astype(np.float64) - aligned(label, output.shape)
    rows = np.moveaxis(difference, decisions.samples or 0, 0) if difference.ndim else difference.reshape(1)
    return np.asarray(np.square(rows).reshape(len(rows), -1).mean(axis=1))


def psnr(output: Array, label: Array, decisions: Decisions) -> Array:
    """Peak signal-to-noise ratio in dB of each sample, for values whose full range is 1: [N]."""
    return np.asarray(-10 * np.log10(np.maximum(mse(output, label, decisions), LEAST_ERROR)))


METRICS: dict[str, Callable[[Array, Array, Decisions], Array]] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "top5": top5,
    "mse": mse,
    "psnr": psnr,
}


def named(metric: str | Metric, decisions: Decisions | None = None) -> tuple[str, Metric]:
    """A metric with its name; those with a name here judge what the model decides.

    The user's function is guarded: if it raises, or returns something other than numbers, that is an InputError.

    Raises:
        InputError: no metric has this name.
    """
    if callable(metric):
        name = str(getattr(metric, "__name__", "metric"))
        return name, _checked(name, metric)
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: is not one of {', '.join(map(repr, METRICS))}; choose one of them")
    judge, judged = METRICS[metric], Decisions() if decisions is None else decisions
    return metric, lambda output, label: judge(output, label, judged)


def _checked(name: str, metric: Metric) -> Metric:
    """The user's metric, whose values are numbers."""

    def score(output: Array, label: Array) -> Array:
        with guarded(f"metric {name!r}: fails", "fix the function"):
            values = np.asarray(metric(output, label))
        if values.dtype.kind not in "biuf":
            raise InputError(f"metric {name!r}: returns {values.dtype} values; return one number per sample")
        if not np.isfinite(values).all():
            raise InputError(f"metric {name!r}: returns NaN or infinity; return one finite number per sample")
        return values

    return score
