"""Range estimators: which part of the values the codes should cover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxqat.graph.qdq import Spec
from onnxqat.insert.settings import Estimate
from onnxqat.numerics import scale_and_zero_point

Floats = NDArray[np.float64]
Rows = Sequence[NDArray[np.float32]] | NDArray[np.float32]

BINS = 2048
#: Shares of the full range that the MSE search tries, and what it then tries around the best of them.
COARSE = np.linspace(1.0, 0.1, 31)
FINE = np.array([-0.02, -0.01, 0.01, 0.02])
#: Elements that it works on at a time: half a megabyte.
BLOCK = 2**17


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins; the range grows by doubling, so that earlier counts are merged exactly.

    Attributes:
        start: lower edge of the first bin, [C].
        width: width of a bin, [C].
        counts: [C, BINS].
    """

    start: Floats
    width: Floats
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Rows) -> Histogram:
        """Histogram of `rows`: C rows of any length, 0 too."""
        low, high = _ends(rows)
        width = np.maximum((high - low) / (BINS - 1), np.finfo(np.float32).tiny)
        return cls(low - width / 2, width, np.zeros((len(rows), BINS), np.int64)).add(rows)

    def add(self, rows: Rows) -> Histogram:
        """The histogram with the values of `rows`, C of them, counted in."""
        grown = self._grown_to(*_ends(rows))
        counts = grown.counts.copy()
        for channel, values in enumerate(rows):
            index = ((values - grown.start[channel]) / grown.width[channel]).astype(np.int64)
            counts[channel] += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)
        return Histogram(grown.start, grown.width, counts)

    def empty(self) -> Histogram:
        """The same bins without counts; what is counted in several such merges exactly."""
        return Histogram(self.start, self.width, np.zeros_like(self.counts))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram with another one's counts, each bin's at its centre: exact where both grew from the same bins."""
        occupied = np.where(other.counts > 0, other.centres, np.nan)
        none = ~(other.counts > 0).any(axis=1)
        occupied[none] = self.start[none, None]
        grown = self._grown_to(np.nanmin(occupied, axis=1), np.nanmax(occupied, axis=1), np.where(none, 0, other.width))
        index = ((other.centres - grown.start[:, None]) / grown.width[:, None]).astype(np.int64)
        counts = grown.counts.copy()
        for channel, places in enumerate(np.clip(index, 0, BINS - 1)):
            np.add.at(counts[channel], places, other.counts[channel])
        return Histogram(grown.start, grown.width, counts)

    @property
    def centres(self) -> Floats:
        """Middle of each bin, [C, BINS]."""
        return self.start[:, None] + self.width[:, None] * (np.arange(BINS) + 0.5)

    def _grown_to(self, low: Floats, high: Floats, least: Floats | float = 0.0) -> Histogram:
        """The histogram with bins doubled until they reach from `low` to `high` [C] and are at least `least` [C] wide."""
        start, width, counts = self.start.copy(), self.width.copy(), self.counts.copy()
        narrow = np.broadcast_to(np.asarray(least) * (1 - 1e-9), start.shape)
        for channel in range(len(start)):
            while (
                low[channel] < start[channel]
                or high[channel] > start[channel] + width[channel] * BINS
                or width[channel] < narrow[channel]
            ):
                merged = counts[channel].reshape(-1, 2).sum(axis=1)
                downwards = low[channel] < start[channel]
                counts[channel] = np.concatenate(
                    [np.zeros_like(merged), merged] if downwards else [merged, np.zeros_like(merged)]
                )
                start[channel] -= width[channel] * BINS if downwards else 0.0
                width[channel] *= 2
        return Histogram(start, width, counts)


def _ends(rows: Rows) -> tuple[Floats, Floats]:
    """Smallest and largest value [C] of each row; 0 for an empty one."""
    pairs = np.array([(row.min(), row.max()) if row.size else (0, 0) for row in rows], np.float64)
    return pairs[:, 0], pairs[:, 1]


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
