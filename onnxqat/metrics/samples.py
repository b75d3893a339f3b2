"""Metrics that are means: of one value for each sample, or for each decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions, aligned
from onnxqat.errors import InputError
from onnxqat.metrics.extra import optional

Array = NDArray[Any]

#: A perfect reconstruction counts as 100 dB, so that means stay finite.
LEAST_ERROR = 1e-10


def accuracy(output: Array, label: Array, decisions: Decisions) -> Array:
    """1 where the decision is the label's, else 0, for those that count (see `labels`): [decisions]."""
    return np.asarray(decisions.hits(output, label), np.float64)


def binary_accuracy(output: Array, label: Array, decisions: Decisions) -> Array:
    """1 where an element is on the side of the threshold that its label, between 0 and 1, is on: [decisions]."""
    return np.asarray(decisions.side_hits(output, label), np.float64)


def top(output: Array, label: Array, decisions: Decisions, *, best: int) -> Array:
    """1 where the label is among so many classes of the largest scores, for those that count: [decisions]."""
    numbers = decisions.numbers(label, output.shape)
    scores = np.moveaxis(output, decisions.class_axis(output), -1)
    check_top(best, scores.shape[-1])
    largest = np.argsort(-scores, axis=-1, kind="stable")[..., :best]
    return np.asarray((largest == numbers[..., None]).any(axis=-1)[decisions.counted(numbers)], np.float64)


def check_top(best: int, classes: int | None) -> None:
    """Raises InputError where every answer would be a hit, as there are no more classes than that."""
    if classes is not None and 1 < classes <= best:  # a single column is a decision, which `numbers` refuses
        raise InputError(
            f"metric 'top{best}': the model has {classes} classes, so that every answer is right; choose a K below {classes}"
        )


def mse(output: Array, label: Array, decisions: Decisions) -> Array:
    """Mean squared difference of each sample: [N]."""
    difference = output.astype(np.float64) - aligned(label, output.shape)
    rows = np.moveaxis(difference, decisions.samples or 0, 0) if difference.ndim else difference.reshape(1)
    return np.asarray(np.square(rows).reshape(len(rows), -1).mean(axis=1))


def psnr(output: Array, label: Array, decisions: Decisions) -> Array:
    """Peak signal-to-noise ratio in dB of each sample, for values whose full range is 1: [N]."""
    return np.asarray(-10 * np.log10(np.maximum(mse(output, label, decisions), LEAST_ERROR)))


def ssim(output: Array, label: Array, decisions: Decisions) -> Array:
    """Structural similarity (Wang et al. 2004, by scikit-image) of each image, for values whose full range is 1: [N]."""
    similarity = optional("skimage.metrics", "scikit-image", "metric 'ssim'").structural_similarity
    wide = aligned(label, output.shape)
    if output.ndim not in (3, 4):
        raise InputError(
            f"metric 'ssim': output has shape {list(output.shape)}, no images [N, C, H, W]; choose another metric"
        )
    channels = None if output.ndim == 3 else 0 if output.shape[1] in (1, 3) else -1
    pairs = zip(output.astype(np.float64), wide.astype(np.float64), strict=True)
    return np.array([similarity(one, other, data_range=1.0, channel_axis=channels) for one, other in pairs])
