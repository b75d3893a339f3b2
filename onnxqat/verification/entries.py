"""Compares outputs whose size depends on the data, where two models give different numbers of entries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sizes:
    """Numbers of entries that two models gave for an output, over the batches in which its shape differs between them.

    Attributes:
        trained: entries of the Q/DQ model: rows along the axis that differs, elements where there is more than one.
        deployed: entries of the deployed model.
        shared: entries that both gave; None for floats, of which none need be equal.
        batches: how many batches.
    """

    trained: int = 0
    deployed: int = 0
    shared: int | None = 0
    batches: int = 0

    def __add__(self, other: Sizes) -> Sizes:
        shared = None if self.shared is None or other.shared is None else self.shared + other.shared
        return Sizes(self.trained + other.trained, self.deployed + other.deployed, shared, self.batches + other.batches)

    @classmethod
    def of(cls, trained: NDArray[Any], deployed: NDArray[Any]) -> Sizes:
        """The entries of one batch, for arrays of different shapes."""
        axis = _differing(trained.shape, deployed.shape)
        if axis is None:
            return cls(trained.size, deployed.size, None, 1)
        shared = None
        if not np.issubdtype(trained.dtype, np.inexact):
            ours, theirs = (Counter(map(bytes, map(np.ascontiguousarray, _rows(a, axis)))) for a in (trained, deployed))
            shared = (ours & theirs).total()
        return cls(trained.shape[axis], deployed.shape[axis], shared, 1)


def _rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    return np.moveaxis(array, axis, 0)


def _differing(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int | None:
    """The one axis in which shapes of equal rank differ."""
    if len(ours) != len(theirs):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else None
