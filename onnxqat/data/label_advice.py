"""Words of messages about labels that do not fit an output: the fact and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: Sizes of an output; None where the model does not state them.
Sizes = Sequence[int | None]


def equal(shape: Sequence[int], sizes: Sizes) -> bool:
    """Whether a shape is the one of these sizes."""
    return len(shape) == len(sizes) and all(s in (None, d) for d, s in zip(shape, sizes, strict=True))


def not_numbers(label: Array, sizes: Sizes) -> str:
    """Returns why labels are not class numbers, for an output of these sizes."""
    if _one_hot(label, sizes):
        return f"is one-hot (shape {list(label.shape)}), class numbers are needed; give label.argmax of its class axis"
    found = f"has type {label.dtype} and shape {list(label.shape)}, class numbers are needed"
    whole = label.dtype.kind in "fb" and bool(np.isfinite(label).all()) and bool((label == np.rint(label)).all())
    if whole:
        return f"{found}; it holds whole numbers, so write them as such: label.astype('int64'), or 3 for 3.0 in a table"
    return f"{found}; cast it to int64, or choose another loss or metric"


def misfit(label: Array, sizes: Sizes, expected: Sizes) -> str:
    """Returns why integer labels do not fit an output of these sizes, whose class numbers have the expected shape."""
    if _one_hot(label, sizes):
        return (
            f"is one-hot (shape {list(label.shape)}), class numbers are needed; give label.argmax of its class axis, "
            "or, where several classes are true at once, use the loss bce_with_logits and the metric binary_accuracy"
        )
    return f"has shape {list(label.shape)}; class numbers of shape {shown(expected)} are needed; reshape it"


def _one_hot(label: Array, sizes: Sizes) -> bool:
    return equal(label.shape, sizes) and label.ndim > 1 and bool(np.isin(label, (0, 1)).all())


def hint(numbers: Array, classes: int) -> str:
    """Returns advice for labels that count from 1, and for data with an ignore label outside the classes."""
    if classes == 2 and np.isin(numbers, (-1, 1)).all():
        return ": for -1 and 1 give (label + 1) / 2"
    outside = np.unique(numbers[(numbers < 0) | (numbers >= classes)])
    if numbers.min() >= 1 and numbers.max() == classes:
        return ": they seem to count from 1, so subtract 1"
    if outside.size != 1:
        return ""
    return f", or leave out those of {int(outside[0])} by ignore_label={int(outside[0])} (--ignore-label)"


def shown(sizes: Sizes) -> str:
    """Sizes as messages write them."""
    return "[" + ", ".join("any" if size is None else str(size) for size in sizes) + "]"
