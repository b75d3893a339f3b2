"""Range estimators: which part of the values the codes should cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxqat.graph.qdq import Spec
from onnxqat.insertion.settings import Estimate
from onnxqat.numerics import scale_and_zero_point

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rows = Sequence[NDArray[np.float32]] | NDArray[np.float32]

BINS = 4096
#: No bin is narrower than 2^FINEST, nor than the largest magnitude in its channel by 2^DIGITS.
FINEST, DIGITS = -126, 40
#: Shares of the full range that the MSE search tries, and what it then tries around the best of them.
COARSE = np.linspace(1.0, 0.1, 31)
FINE = np.array([-0.02, -0.01, 0.01, 0.02])
#: Elements that it works on at a time: half a megabyte.
BLOCK = 2**17


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins; the smallest and the largest value alone decide which.

    A bin is 2^exponent wide and begins at a multiple of that, and the exponent is the smallest for which all values fit. Growing
    merges whole bins, so the counts do not depend on how the values came: in one piece or in many, or in which order.

    Attributes:
        exponent: [C].
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


def without_zeros(rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Each of the rows without its zeros."""
    return [row[row != 0] for row in rows]


def histogram_range(histogram: Histogram, estimate: Estimate, levels: int, *, symmetric: bool) -> tuple[Floats, Floats]:
    """Low and high [C] by `percentile`, `threesigma` (see `weight_range`) or `mse` (see `_least_error`)."""
    centres, counts = histogram.centres, histogram.counts
    if estimate.type == "percentile":
        shares = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
        first = np.argmax(shares > estimate.low / 100, axis=1)
        last = np.argmax(shares >= estimate.high / 100, axis=1)
        rows = np.arange(len(first))
        return centres[rows, first], centres[rows, last]
    if estimate.type == "threesigma":
        median = _weighted_median(centres, counts)
        return _three_sigma(median, _weighted_median(np.abs(centres - median[:, None]), counts))
    return _least_error(centres, counts.astype(np.float64), levels, symmetric=symmetric)


def _weighted_median(values: Floats, counts: NDArray[np.int64]) -> Floats:
    """Median [C] of values [C, K] that occur so many times; 0 where none do."""
    order = np.argsort(values, axis=1)
    sorted_counts = np.take_along_axis(counts, order, axis=1)
    middle = np.argmax(np.cumsum(sorted_counts, axis=1) >= counts.sum(axis=1, keepdims=True) / 2, axis=1)
    found = np.take_along_axis(np.take_along_axis(values, order, axis=1), middle[:, None], axis=1)[:, 0]
    return np.where(counts.sum(axis=1) > 0, found, 0.0)


def _three_sigma(median: Floats, deviation: Floats) -> tuple[Floats, Floats]:
    """Three standard deviations about the median, of normal numbers with that median absolute deviation."""
    reach = 3 * 1.482623 * deviation
    return median - reach, median + reach


def weight_range(weight: NDArray[np.float32], spec: Spec, estimate: Estimate) -> tuple[Floats, Floats]:
    """Low and high of a weight, [] per tensor or [C]; a weight is one sample, so means over samples change nothing.

    `threesigma` leaves zeros out (pruned weights, or activations behind a Relu, would make every deviation 0).
    """
    rows = (
        weight.reshape(1, -1)
        if spec.axis is None
        else np.moveaxis(weight, spec.axis, 0).reshape(weight.shape[spec.axis], -1)
    )
    if estimate.type in ("percentile", "mean_percentile"):
        low, high = np.percentile(rows, [estimate.low, estimate.high], axis=1)
    elif estimate.type == "threesigma":
        kept = without_zeros(rows)
        medians = np.array([np.median(row) if row.size else 0.0 for row in kept])
        deviations = [np.median(np.abs(row - m)) if row.size else 0.0 for row, m in zip(kept, medians, strict=True)]
        low, high = _three_sigma(medians, np.array(deviations))
    elif estimate.type == "mse":
        low, high = _least_error(rows, None, spec.bounds[1] - spec.bounds[0] + 1, symmetric=spec.symmetric)
    else:
        low, high = rows.min(axis=1), rows.max(axis=1)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return (low[0], high[0]) if spec.axis is None else (low, high)


def _least_error(
    values: NDArray[np.floating], counts: NDArray[np.floating] | None, levels: int, *, symmetric: bool
) -> tuple[Floats, Floats]:
    """The shrunk range [C] of least squared error of `values` [C, K], weighted by `counts` [C, K] (None: all 1).

    Searched coarsely over `COARSE` for all channels, then finely around each channel's best (Banner et al. 2019, "Post-training
    4-bit quantization of convolutional networks for rapid-deployment", section 3, by search instead of in closed form).
    """
    occupied = values if counts is None else np.where(counts > 0, values, 0)
    low = np.minimum(occupied.min(axis=1), 0).astype(np.float64)
    high = np.maximum(occupied.max(axis=1), 0).astype(np.float64)
    signed = symmetric and bool((low < 0).any())
    qmin, qmax = (-(levels // 2), levels - levels // 2 - 1) if signed else (0, levels - 1)
    values32, counts32 = values.astype(np.float32), None if counts is None else counts.astype(np.float32)
    best, chosen = np.full(len(low), np.inf), np.ones(len(low))

    def attempt(shrink: Floats) -> None:
        scale, zero_point = scale_and_zero_point(low * shrink, high * shrink, qmin, qmax, symmetric=symmetric)
        error = _squared_error(values32, counts32, scale, qmin - zero_point, qmax - zero_point)
        better = error < best
        best[better], chosen[better] = error[better], shrink[better]

    for share in COARSE:
        attempt(np.full(len(low), share))
    centre = chosen.copy()
    for offset in FINE:
        attempt(np.clip(centre + offset, COARSE[-1], 1.0))
    return low * chosen, high * chosen


def _squared_error(
    values: NDArray[np.float32],
    counts: NDArray[np.float32] | None,
    scale: NDArray[np.float32],
    lowest: NDArray[np.int32],
    highest: NDArray[np.int32],
) -> Floats:
    """Sum of (fake-quantize(v) - v)² over each row [C], for codes less the zero point in [lowest, highest].

    The same arithmetic as `numerics.fake_quantize`, in place and in blocks that stay in the cache, since the search for a large
    weight spends all its time here.
    """
    rows = max(BLOCK // values.shape[1], 1)
    total = np.empty(len(values))
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        x, s = values[block], scale[block, None]
        y = x / s
        np.rint(y, out=y)
        np.clip(y, lowest[block, None].astype(np.float32), highest[block, None].astype(np.float32), out=y)
        y *= s
        y -= x
        total[block] = np.einsum("ck,ck->c", y, y) if counts is None else np.einsum("ck,ck,ck->c", y, y, counts[block])
    return total
