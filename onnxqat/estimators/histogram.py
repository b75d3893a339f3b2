"""Counts of values in bins, which hold a stream of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = Sequence[NDArray[np.float32]] | NDArray[np.float32]

BINS = 4096
#: No bin is narrower than 2^FINEST, nor than the largest magnitude in its channel by 2^DIGITS.
FINEST, DIGITS = -126, 40


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins, which depend only on the smallest and the largest value.

    A bin is 2^exponent wide and begins at a multiple of that, and the exponent is the smallest for which all values fit. Growing
    merges whole bins, so the counts do not depend on how the values came: in one piece or in many, or in which order.

    Attributes:
        exponent: exponent of the bins' width, [C].
        first: the bin of the smallest value, [C]: it begins at first · 2^exponent.
        counts: [C, BINS]; all 0 where there was no value.
    """

    exponent: Integers
    first: Integers
    counts: Integers

    @classmethod
    def of(cls, rows: Rows) -> Histogram:
        """Histogram of `rows`: C rows of any length, 0 too."""
        channels = [_counted(np.asarray(row, np.float32)) for row in rows]
        exponent, first = (np.array([channel[i] for channel in channels], np.int64) for i in (0, 1))
        return cls(exponent, first, np.stack([counts for _, _, counts in channels]))

    def add(self, rows: Rows) -> Histogram:
        """The histogram with the values of `rows`, C of them, counted in."""
        return self.merge(Histogram.of(rows))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        exponent, first, counts = self.exponent.copy(), self.first.copy(), self.counts.copy()
        for channel in range(len(first)):
            parts = [h._occupied(channel) for h in (self, other) if h.counts[channel].any()]
            if len(parts) == 2:
                exponent[channel], first[channel], counts[channel] = _joined(*parts)
            elif other.counts[channel].any():
                for mine, theirs in ((exponent, other.exponent), (first, other.first), (counts, other.counts)):
                    mine[channel] = theirs[channel]
        return Histogram(exponent, first, counts)

    @property
    def width(self) -> Floats:
        """Width of a bin, [C]."""
        return np.asarray(np.ldexp(1.0, self.exponent))

    @property
    def start(self) -> Floats:
        """Lower edge of the first bin, [C]."""
        return np.asarray(self.first * self.width)

    @property
    def centres(self) -> Floats:
        """Middle of each bin, [C, BINS]."""
        return self.start[:, None] + self.width[:, None] * (np.arange(BINS) + 0.5)

    def _occupied(self, channel: int) -> tuple[int, Integers, Integers]:
        """A channel's exponent, the numbers of the bins with values in them (in units of their width), and how many."""
        places = np.flatnonzero(self.counts[channel])
        return int(self.exponent[channel]), self.first[channel] + places, self.counts[channel][places]


def _counted(values: NDArray[np.float32]) -> tuple[int, int, Integers]:
    """Exponent, first bin and counts of one channel."""
    if not values.size:
        return FINEST, 0, np.zeros(BINS, np.int64)
    low, high = float(values.min()), float(values.max())
    exponent = max(FINEST, math.frexp(max(-low, high))[1] - DIGITS)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    first = math.floor(math.ldexp(low, -exponent))
    # exact: a power of two moves the point of a float only
    bins = values * np.float32(2.0**-exponent)
    np.floor(bins, out=bins)
    bins -= np.float32(first)
    return exponent, first, np.bincount(bins.astype(np.intp).ravel(), minlength=BINS)


def _joined(left: tuple[int, Integers, Integers], right: tuple[int, Integers, Integers]) -> tuple[int, int, Integers]:
    """Exponent, first bin and counts of two channels' occupied bins together."""
    exponent = max(left[0], right[0])
    bins = np.concatenate([numbers >> (exponent - own) for own, numbers, _ in (left, right)])
    while bins.max() - bins.min() >= BINS:
        bins, exponent = bins >> 1, exponent + 1
    first = int(bins.min())
    counts = np.zeros(BINS, np.int64)
    np.add.at(counts, bins - first, np.concatenate([left[2], right[2]]))
    return exponent, first, counts
