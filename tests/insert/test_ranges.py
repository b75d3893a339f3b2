import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxqat.graph.qdq import Spec
from onnxqat.insert.ranges import BINS, Histogram, histogram_range, weight_range
from onnxqat.numerics import fake_quantize, scale_and_zero_point


@given(
    seed=st.integers(0, 10_000), growth=st.lists(st.floats(-4, 4), min_size=1, max_size=6), channels=st.integers(1, 3)
)
@settings(max_examples=60)
def test_histogram_of_a_growing_stream_counts_every_value_in_its_bin(seed, growth, channels):
    rng = np.random.default_rng(seed)
    stream = [(rng.normal(size=(channels, 50)) * 10.0**g + rng.normal()).astype(np.float32) for g in growth]
    histogram = Histogram.of(stream[0])
    for rows in stream[1:]:
        histogram = histogram.add(rows)
    values = np.concatenate(stream, axis=1).astype(np.float64)
    for channel in range(channels):
        edges = histogram.start[channel] + histogram.width[channel] * np.arange(BINS + 1)
        assert edges[0] <= values[channel].min()
        assert values[channel].max() <= edges[-1]
        expected, _ = np.histogram(values[channel], edges)
        # a value on an edge may fall on either side of it
        assert np.abs(np.cumsum(histogram.counts[channel]) - np.cumsum(expected)).max() <= 2
        assert histogram.counts[channel].sum() == values.shape[1]


@pytest.mark.parametrize("later", [5.0, 6.0, -1.0, 0.0], ids=str)
def test_histogram_of_a_constant_can_grow(later):
    first, second = (np.full((1, 3), value, np.float32) for value in (5, later))
    histogram = Histogram.of(first).add(second)
    for value, count in ((5.0, 6 if later == 5.0 else 3), (later, 6 if later == 5.0 else 3)):
        near = np.abs(histogram.centres[0] - value) <= histogram.width[0]
        assert histogram.counts[0][near].sum() == count


@given(seed=st.integers(0, 1000), percentile=st.floats(60, 99.9))
@settings(max_examples=30)
def test_percentile_of_a_histogram_is_that_of_the_values_within_a_bin(seed, percentile):
    values = np.random.default_rng(seed).normal(size=(1, 5000)).astype(np.float32)
    histogram = Histogram.of(values)
    low, high = histogram_range(histogram, "percentile", 256, symmetric=False, percentile=percentile)
    expected = np.percentile(values, [100 - percentile, percentile], method="inverted_cdf")
    assert np.abs(np.array([low[0], high[0]]) - expected).max() <= 1.01 * histogram.width[0]


def error_of(values: np.ndarray, spec: Spec, low: np.ndarray, high: np.ndarray) -> float:
    scale, zero_point = scale_and_zero_point(low, high, *spec.bounds, symmetric=spec.symmetric)
    rounded = fake_quantize(values, scale, zero_point, *spec.bounds, axis=spec.axis)
    return float(np.square(rounded - values, dtype=np.float64).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(16, 9), (16, 400), (1, 300_000)], ids=str)
def test_mse_range_is_within_half_a_percent_of_the_best_of_all_shrinks(bits, symmetric, shape):
    values = np.random.default_rng(bits).laplace(size=shape).astype(np.float32)
    spec = Spec(bits, symmetric=symmetric, axis=0)
    found = error_of(values, spec, *weight_range(values, spec, "mse", 100.0))
    full = values.min(axis=1), values.max(axis=1)
    errors = np.array([[error_of(row[None], spec, lo * s, hi * s) for s in np.linspace(1, 0.1, 91)]
                       for row, lo, hi in zip(values, *full, strict=True)])  # fmt: skip
    assert found <= 1.005 * errors.min(axis=1).sum()


def test_min_max_range_is_that_of_each_channel():
    weight = np.array([[[-1.0, 2.0]], [[3.0, -4.0]]], np.float32)
    assert [r.tolist() for r in weight_range(weight, Spec(axis=0), "min_max", 100.0)] == [[-1, -4], [2, 3]]
    assert [r.tolist() for r in weight_range(weight, Spec(axis=2), "min_max", 100.0)] == [[-1, -4], [3, 2]]
    assert weight_range(weight, Spec(), "min_max", 100.0) == (-4, 3)
