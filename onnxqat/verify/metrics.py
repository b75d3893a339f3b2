"""How well outputs match labels: a metric is a function from an output and its labels to one value per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.errors import InputError

Array = NDArray[Any]
Metric = Callable[[Array, Array], Array]

#: A perfect reconstruction counts as 100 dB, so that means stay finite.
LEAST_ERROR = 1e-10


def accuracy(output: Array, label: Array) -> Array:
    """1 where the largest of the scores [N, C, ...] is that of the label [N, ...] (class numbers), else 0: [N, ...]."""
    classes = _classes(output, label)
    return np.asarray(output.argmax(axis=1) == classes, np.float64)


def top5(output: Array, label: Array) -> Array:
    """1 where the label [N] is among the five largest of the scores [N, C], else 0: [N]."""
    classes = _classes(output, label)
    best = np.argsort(-output, axis=1, kind="stable")[:, :5]
    return np.asarray((best == classes[:, None]).any(axis=1), np.float64)


def mse(output: Array, label: Array) -> Array:
    """Mean squared difference of each sample: [N]."""
    if output.shape != label.shape:
        raise InputError(f"label: has shape {list(label.shape)}, the output {list(output.shape)}; they must be equal")
    difference = output.astype(np.float64) - label
    return np.asarray(np.square(difference).reshape(len(output), -1).mean(axis=1))


def psnr(output: Array, label: Array) -> Array:
    """Peak signal-to-noise ratio in dB of each sample, for values whose full range is 1: [N]."""
    return np.asarray(-10 * np.log10(np.maximum(mse(output, label), LEAST_ERROR)))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "top5": top5, "mse": mse, "psnr": psnr}


def named(metric: str | Metric) -> tuple[str, Metric]:
    """A metric with its name.

    Raises:
        InputError: no metric has this name.
    """
    if callable(metric):
        return getattr(metric, "__name__", "metric"), metric
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: is not one of {', '.join(map(repr, METRICS))}; choose one of them")
    return metric, METRICS[metric]


def _classes(output: Array, label: Array) -> Array:
    if output.ndim < 2:
        raise InputError(f"output: has shape {list(output.shape)}, no class scores [N, C]; choose another metric")
    expected = (output.shape[0], *output.shape[2:])
    classes = label.reshape(expected) if label.size == np.prod(expected) else label
    if classes.shape != expected or not np.issubdtype(label.dtype, np.integer):
        raise InputError(
            f"label: is {label.dtype} of shape {list(label.shape)}; class numbers of shape {list(expected)} are needed"
        )
    if classes.min() < 0 or classes.max() >= output.shape[1]:
        raise InputError(
            f"label: holds {int(classes.min())} to {int(classes.max())}, the model has classes 0 to {output.shape[1] - 1}; "
            "check the labels"
        )
    return classes
