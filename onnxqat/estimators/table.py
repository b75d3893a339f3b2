"""Table of the range estimators: what each keeps of a stream of values, and the range that it gives.

- `min_max`: smallest and largest value.
- `mean_min_max`: their means over samples.
- `mixed_min_max`: the mean of the largest values over samples and, where the zero point is fitted, of the smallest ones (per
  channel: `min_max`).
- `percentile`: percentiles of all values.
- `mean_percentile`: means over samples of each sample's percentiles.
- `threesigma`: the median of what is not 0, give or take three of its deviations (1.4826 times the median absolute deviation).
- `mse`: the share of the full range with the least squared error.

A weight counts as one sample, so that means over samples change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxqat.estimators.histogram import Floats, Histogram, Rows
from onnxqat.estimators.least_error import least_error

Values = NDArray[np.float32]
Ends = tuple[Floats, Floats]


@dataclass(frozen=True)
class Estimate:
    """Estimator of a range, with nothing left open.

    Attributes:
        type: the estimator, a key of `ESTIMATORS`.
        low, high: percentiles, for the estimators that take them.
        samples: how many samples count; None: all.
    """

    type: str = "min_max"
    low: float = 0.0
    high: float = 100.0
    samples: int | None = None


class Codes(NamedTuple):
    """Codes that a range is for: their number, and whether their zero point is fixed."""

    levels: int
    symmetric: bool


class Seen(NamedTuple):
    """Statistics that were kept of a stream.

    Attributes:
        low, high: smallest and largest value, [C].
        means: means over samples of what the estimator averages, [K, C]; empty if it averages nothing.
        histogram: histogram of what it counts; None if it counts nothing.
        per_channel: whether it has a scale for each channel.
    """

    low: Floats
    high: Floats
    means: Floats
    histogram: Histogram | None
    per_channel: bool


@dataclass(frozen=True)
class Estimator:
    """Way to find a range, [C] low and high.

    Attributes:
        of_values: from all values at once, [C, K], as a weight has them.
        of_stream: from what was kept of a stream.
        averaged: of values [samples, C, K], the numbers [K', samples, C] whose means over samples are kept; None: none.
        counted: of values [C, K], those of each channel that a histogram counts; None: no histogram is kept.
    """

    of_values: Callable[[Values, Estimate, Codes], Ends]
    of_stream: Callable[[Seen, Estimate, Codes], Ends]
    averaged: Callable[[Values, Estimate], NDArray[np.floating]] | None = None
    counted: Callable[[Values], Rows] | None = None


def without_zeros(rows: Values) -> list[Values]:
    """Each of the rows without its zeros."""
    return [row[row != 0] for row in rows]


def _all_of_them(rows: Values) -> Values:
    return rows


def _ends(rows: Values, estimate: Estimate, codes: Codes) -> Ends:
    return rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)


def _seen_ends(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    return seen.low, seen.high


def _ends_and_magnitude(samples: Values, estimate: Estimate) -> NDArray[np.floating]:
    """Smallest value, largest value and largest magnitude of each sample."""
    lows, highs = samples.min(axis=2), samples.max(axis=2)
    return np.stack([lows, highs, np.maximum(-lows, highs)])


def _mean_ends(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    lows, highs, magnitudes = seen.means
    return (np.where(seen.low < 0, -magnitudes, 0), magnitudes) if codes.symmetric else (lows, highs)


def _mixed_ends(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    return _seen_ends(seen, estimate, codes) if seen.per_channel else _mean_ends(seen, estimate, codes)


def _percentiles(rows: Values, estimate: Estimate, codes: Codes) -> Ends:
    low, high = np.percentile(rows, [estimate.low, estimate.high], axis=1)
    return low, high


def _sample_percentiles(samples: Values, estimate: Estimate) -> NDArray[np.floating]:
    found: NDArray[np.floating] = np.percentile(samples, [estimate.low, estimate.high], axis=2)
    return found


def _mean_percentiles(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    return seen.means[0], seen.means[1]


def _counted_percentiles(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    centres, counts = _counts(seen)
    shares = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    first = np.argmax(shares > estimate.low / 100, axis=1)
    last = np.argmax(shares >= estimate.high / 100, axis=1)
    rows = np.arange(len(first))
    return _within(seen, (centres[rows, first], centres[rows, last]))


def _three_sigma_of_values(rows: Values, estimate: Estimate, codes: Codes) -> Ends:
    """Leaves zeros out: pruned weights, or activations behind a Relu, would make every deviation 0."""
    kept = without_zeros(rows)
    medians = np.array([np.median(row) if row.size else 0.0 for row in kept])
    deviations = [np.median(np.abs(row - m)) if row.size else 0.0 for row, m in zip(kept, medians, strict=True)]
    return _three_sigma(medians, np.array(deviations))


def _counted_three_sigma(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    centres, counts = _counts(seen)
    median = _weighted_median(centres, counts)
    deviation = _weighted_median(np.abs(centres - median[:, None]), counts)
    return _within(seen, _three_sigma(median, deviation))


def _least_error_of_values(rows: Values, estimate: Estimate, codes: Codes) -> Ends:
    return least_error(rows, None, codes.levels, symmetric=codes.symmetric)


def _counted_least_error(seen: Seen, estimate: Estimate, codes: Codes) -> Ends:
    centres, counts = _counts(seen)
    return _within(seen, least_error(centres, counts.astype(np.float64), codes.levels, symmetric=codes.symmetric))


def _counts(seen: Seen) -> tuple[Floats, NDArray[np.int64]]:
    assert seen.histogram is not None
    return seen.histogram.centres, seen.histogram.counts


def _within(seen: Seen, ends: Ends) -> Ends:
    """Limits a range to the values: a bin's centre may lie beyond them, and a Clip is absorbed only within its bounds."""
    return np.maximum(ends[0], np.minimum(seen.low, 0)), np.minimum(ends[1], np.maximum(seen.high, 0))


def _weighted_median(values: Floats, counts: NDArray[np.int64]) -> Floats:
    """Median [C] of values [C, K], weighted by their counts; 0 where all counts are 0."""
    order = np.argsort(values, axis=1)
    sorted_counts = np.take_along_axis(counts, order, axis=1)
    middle = np.argmax(np.cumsum(sorted_counts, axis=1) >= counts.sum(axis=1, keepdims=True) / 2, axis=1)
    found = np.take_along_axis(np.take_along_axis(values, order, axis=1), middle[:, None], axis=1)[:, 0]
    return np.where(counts.sum(axis=1) > 0, found, 0.0)


def _three_sigma(median: Floats, deviation: Floats) -> tuple[Floats, Floats]:
    """Three standard deviations about the median, of normal numbers with that median absolute deviation."""
    reach = 3 * 1.482623 * deviation
    return median - reach, median + reach


#: By the name under which a configuration asks for them.
ESTIMATORS: Mapping[str, Estimator] = {
    "min_max": Estimator(_ends, _seen_ends),
    "mean_min_max": Estimator(_ends, _mean_ends, averaged=_ends_and_magnitude),
    "mixed_min_max": Estimator(_ends, _mixed_ends, averaged=_ends_and_magnitude),
    "percentile": Estimator(_percentiles, _counted_percentiles, counted=_all_of_them),
    "mean_percentile": Estimator(_percentiles, _mean_percentiles, averaged=_sample_percentiles),
    "threesigma": Estimator(_three_sigma_of_values, _counted_three_sigma, counted=without_zeros),
    "mse": Estimator(_least_error_of_values, _counted_least_error, counted=_all_of_them),
}
