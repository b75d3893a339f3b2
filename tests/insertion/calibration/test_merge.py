"""Statistics that several processes gathered, merged: as if one had seen all."""

import numpy as np
import pytest

from onnxqat.estimators.histogram import Histogram
from onnxqat.estimators.table import Estimate
from onnxqat.insertion.calibration.calibrate import Observer

BATCHES = [np.random.default_rng(n).normal(n % 3, 1 + n, (4, 3, 50)).astype(np.float32) for n in range(7)]


def observed(batches, axis, estimate):
    observer = Observer(axis, estimate)
    for batch in batches:
        observer.observe(batch)
    return observer


@pytest.mark.parametrize("kind", ["min_max", "mean_min_max", "mse", "percentile", "threesigma", "mean_percentile"])
@pytest.mark.parametrize("axis", [None, 1], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("processes", [2, 3])
def test_merged_observers_give_the_range_of_one_that_saw_all(kind, axis, processes):
    estimate = Estimate(kind, low=1.0, high=99.0)
    whole = observed(BATCHES, axis, estimate)
    parts = [observed(BATCHES[rank::processes], axis, estimate) for rank in range(processes)]
    merged = Observer(axis, estimate)
    for part in [*parts, Observer(axis, estimate)]:  # the last process saw nothing
        merged.merge(part)
    assert merged.samples == whole.samples
    for symmetric in (False, True):
        for end, expected in zip(
            merged.range(256, symmetric=symmetric), whole.range(256, symmetric=symmetric), strict=True
        ):
            np.testing.assert_allclose(end, expected, rtol=1e-6, atol=1e-9)


def rows(seed, low, high, count=1000):
    return np.random.default_rng(seed).uniform(low, high, (2, count)).astype(np.float32)


@pytest.mark.parametrize(
    "ends",
    [
        ((0, 1), (0, 1)),
        ((0, 1), (-50, 70)),
        ((-50, 70), (0, 1)),
        ((0, 1), (100, 101)),
        ((-1e-30, 1e-30), (5, 5)),
        ((0, 0), (3, 4)),
    ],
    ids=["alike", "wider", "narrower", "apart", "tiny", "zeros"],
)
def test_merged_histograms_are_that_of_all_values(ends):
    first, second = (rows(seed, *pair) for seed, pair in enumerate(ends))
    merged = Histogram.of(first).merge(Histogram.of(second))
    whole = Histogram.of(np.concatenate([second, first], axis=1))
    for name in ("exponent", "first", "counts"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


def test_a_histogram_without_counts_changes_nothing():
    histogram = Histogram.of(rows(0, -1, 1))
    empty = Histogram.of(rows(1, 50, 90)[:, :0])
    for merged in (histogram.merge(empty), empty.merge(histogram)):
        np.testing.assert_array_equal(merged.counts, histogram.counts)
        np.testing.assert_array_equal(merged.start, histogram.start)
