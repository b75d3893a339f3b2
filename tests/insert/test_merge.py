"""Statistics that several processes gathered, merged: as if one had seen all."""

import numpy as np
import pytest

from onnxqat.insert.calibrate import Observer
from onnxqat.insert.ranges import Histogram
from onnxqat.insert.settings import Estimate

BATCHES = [np.random.default_rng(n).normal(n % 3, 1 + n, (4, 3, 50)).astype(np.float32) for n in range(7)]


def observed(batches, axis, estimate, bins=None):
    observer = Observer(axis, estimate, histogram=bins)
    for batch in batches:
        observer.observe(batch)
    return observer


@pytest.mark.parametrize("kind", ["min_max", "mean_min_max", "mse", "percentile", "threesigma", "mean_percentile"])
@pytest.mark.parametrize("axis", [None, 1], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("processes", [2, 3])
def test_merged_observers_give_the_range_of_one_that_saw_all(kind, axis, processes):
    estimate = Estimate(kind, low=1.0, high=99.0)
    whole = observed(BATCHES, axis, estimate)
    first = observed(BATCHES[:1], axis, estimate)
    bins = None if first.histogram is None else first.histogram.empty()
    parts = [observed(BATCHES[rank::processes], axis, estimate, bins) for rank in range(processes)]
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
    [((0, 1), (0, 1)), ((0, 1), (-50, 70)), ((-50, 70), (0, 1)), ((0, 1), (100, 101))],
    ids=["alike", "wider", "narrower", "apart"],
)
def test_histograms_of_different_bins_merge_within_a_bin(ends):
    first, second = (rows(seed, *pair) for seed, pair in enumerate(ends))
    merged = Histogram.of(first).merge(Histogram.of(second))
    both = np.concatenate([first, second], axis=1)
    assert (merged.counts.sum(axis=1) == 2000).all()
    for channel in range(2):
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            counted = np.repeat(merged.centres[channel], merged.counts[channel])
            exact = np.quantile(both[channel], share, method="nearest")
            found = np.quantile(counted, share, method="nearest")
            assert abs(found - exact) <= 1.01 * merged.width[channel]


def test_a_histogram_without_counts_changes_nothing():
    histogram = Histogram.of(rows(0, -1, 1))
    merged = histogram.merge(Histogram.of(rows(1, 50, 90)).empty())
    np.testing.assert_array_equal(merged.counts, histogram.counts)
    np.testing.assert_array_equal(merged.start, histogram.start)
