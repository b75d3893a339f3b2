import numpy as np
import pytest

from onnxqat.insert.calibrate import Observer
from onnxqat.numerics import scale_and_zero_point
from tests.models import random

STREAM = [random(4, 3, 5, seed=n, scale=1.0 + n) for n in range(5)]


def observed(axis: int | None = None, *, histogram: bool = False) -> Observer:
    observer = Observer(axis, histogram)
    for x in STREAM:
        observer.observe(x)
    return observer


def ranged(observer: Observer, estimator: str, percentile: float = 99.0):
    return observer.range(estimator, 256, symmetric=False, percentile=percentile)


def test_min_max_is_that_of_the_whole_stream():
    everything = np.concatenate(STREAM)
    assert ranged(observed(), "min_max") == (everything.min(), everything.max())


def test_min_max_per_channel_runs_along_the_axis():
    everything = np.concatenate(STREAM)
    low, high = ranged(observed(1), "min_max")
    np.testing.assert_array_equal(low, everything.min(axis=(0, 2)))
    np.testing.assert_array_equal(high, everything.max(axis=(0, 2)))


def test_mean_min_max_averages_over_samples():
    everything = np.concatenate(STREAM).reshape(20, -1)
    low, high = ranged(observed(), "mean_min_max")
    assert low == pytest.approx(everything.min(axis=1).mean())
    assert high == pytest.approx(everything.max(axis=1).mean())


@pytest.mark.parametrize("estimator", ["percentile", "mse"])
@pytest.mark.parametrize("ceiling", [6.0, 5.9])
def test_range_of_a_clipped_value_never_exceeds_the_clip(estimator, ceiling):
    observer = Observer(None, keep_histogram=True)
    for n, top in enumerate((0.7, 3.0, ceiling)):
        observer.observe(np.clip(random(4, 100, seed=n, scale=20.0), 0, np.float32(top)))
    low, high = ranged(observer, estimator, 100.0)
    assert scale_and_zero_point(low, high, 0, 255, symmetric=False)[1] == 0
    assert high <= np.float32(ceiling)


def test_scalars_are_observed_and_empty_arrays_passed_over():
    observer = Observer(None, keep_histogram=True)
    for x in (np.float32(3).reshape(()), np.zeros((0, 4), np.float32), np.float32(-1).reshape(())):
        observer.observe(x)
    assert ranged(observer, "min_max") == (-1, 3)
