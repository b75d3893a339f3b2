"""Moments in 8 bits: block-wise quantization to the values of a dynamic tree (Dettmers et al. 2022).

A block of 2048 numbers is divided by its largest magnitude, and each of them becomes the code of the nearest of 256 values in
[-1, 1], which are dense relative to their size over seven decades. Of numbers that are never negative, all
values are above 0: a variance that came out as 0 would make a step of any size (Li et al. 2023, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxqat.training.running.values import Floats

#: Numbers of a block.
BLOCK = 2048
#: Decades that the values cover.
_DECADES = 7
#: Bits of a float32 that tell its code: sign, exponent and half of the mantissa.
_KEY = 20

Codes = NDArray[np.uint8]


class Packed:
    """A flat array in 8 bits.

    Args:
        size: length of the array, all zeros.
        signed: whether it may hold negative numbers.

    Attributes:
        codes: uint8, whole blocks of them.
        peaks: largest magnitude of each block.
    """

    def __init__(self, size: int, *, signed: bool) -> None:
        self._table = _table(signed)
        blocks = -(-size // BLOCK)
        self.codes: Codes = np.zeros(blocks * BLOCK, np.uint8)
        self.peaks: Floats = np.zeros(blocks, np.float32)

    def read(self, start: int, numbers: Floats) -> None:
        """Writes the numbers from `start` on, the beginning of a block, to an array of whole blocks."""
        np.take(self._table.values, self.codes[start : start + numbers.size], out=numbers, mode="clip")
        blocks = numbers.reshape(-1, BLOCK)
        blocks *= self._peaks(start, numbers)

    def write(self, start: int, numbers: Floats) -> None:
        """The inverse of `read`; overwrites `numbers`."""
        blocks, peaks = numbers.reshape(-1, BLOCK), self._peaks(start, numbers)
        np.abs(blocks).max(axis=1, keepdims=True, out=peaks)
        blocks /= np.where(peaks > 0, peaks, 1)
        keys = numbers.view(np.uint32) >> np.uint32(32 - _KEY)
        np.take(self._table.nearest, keys, out=self.codes[start : start + numbers.size], mode="clip")

    def _peaks(self, start: int, numbers: Floats) -> Floats:
        return self.peaks[start // BLOCK : (start + numbers.size) // BLOCK, None]


@dataclass(frozen=True)
class _Table:
    """The values of the codes, ascending, and the code of the nearest value by the first bits of a float32."""

    values: Floats
    nearest: Codes


@lru_cache
def _table(signed: bool) -> _Table:
    values = tree_values(signed=signed)
    middles = (np.arange(1 << _KEY, dtype=np.uint32) << (32 - _KEY)) + (1 << (31 - _KEY))
    with np.errstate(invalid="ignore"):
        keys = middles.view(np.float32)
        nearest = np.searchsorted((values[1:] + values[:-1]) / 2, np.nan_to_num(keys)).astype(np.uint8)
    return _Table(values, nearest)


def tree_values(*, signed: bool) -> Floats:
    """The values of the 8-bit dynamic tree, ascending: middles of equal parts of a decade, twice those of the one below."""
    parts = [2 ** (decade + (not signed)) for decade in range(_DECADES)]
    edges = [np.linspace(0.1, 1, count + 1) for count in parts]
    middles = [(one[1:] + one[:-1]) / 2 * 10.0 ** (number + 1 - _DECADES) for number, one in enumerate(edges)]
    positive = np.concatenate([*middles, [1.0]])
    values = np.concatenate([-positive[:-1], [0.0], positive]) if signed else positive
    return np.sort(values).astype(np.float32)
