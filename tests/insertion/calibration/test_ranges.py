import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxqat.estimators.histogram import BINS, Histogram
from onnxqat.estimators.table import ESTIMATORS, Codes, Estimate, Seen, without_zeros
from onnxqat.graph.qdq import Spec
from onnxqat.insertion.calibration.ranges import weight_range
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


@given(seed=st.integers(0, 1000), percentile=st.floats(60, 99.9), floor=st.floats(0, 0.1))
@settings(max_examples=30)
def test_percentiles_of_a_histogram_are_those_of_the_values_within_a_bin(seed, percentile, floor):
    values = np.random.default_rng(seed).normal(size=(1, 5000)).astype(np.float32)
    histogram = Histogram.of(values)
    wanted = Estimate("percentile", 100 - percentile - floor, percentile)
    # where a whole number of values lies below, the percentile is anything from one value to the next
    assume(abs(50 * wanted.low - round(50 * wanted.low)) > 1e-6)
    low, high = stream_range(histogram, wanted)
    expected = np.percentile(values, [wanted.low, wanted.high], method="inverted_cdf")
    assert np.abs(np.array([low[0], high[0]]) - expected).max() <= 1.01 * histogram.width[0]


def stream_range(histogram: Histogram, estimate: Estimate) -> tuple[np.ndarray, np.ndarray]:
    """The range of what a histogram has counted, wherever its values ended."""
    wide = np.full(len(histogram.first), np.inf)
    seen = Seen(-wide, wide, np.zeros(0), histogram, per_channel=True)
    return ESTIMATORS[estimate.type].of_stream(seen, estimate, Codes(256, symmetric=False))


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
    found = error_of(values, spec, *weight_range(values, spec, Estimate("mse")))
    full = values.min(axis=1), values.max(axis=1)
    errors = np.array([[error_of(row[None], spec, lo * s, hi * s) for s in np.linspace(1, 0.1, 91)]
                       for row, lo, hi in zip(values, *full, strict=True)])  # fmt: skip
    assert found <= 1.005 * errors.min(axis=1).sum()


def test_min_max_range_is_that_of_each_channel():
    weight = np.array([[[-1.0, 2.0]], [[3.0, -4.0]]], np.float32)
    assert [r.tolist() for r in weight_range(weight, Spec(axis=0), Estimate())] == [[-1, -4], [2, 3]]
    assert [r.tolist() for r in weight_range(weight, Spec(axis=2), Estimate())] == [[-1, -4], [3, 2]]
    assert weight_range(weight, Spec(), Estimate()) == (-4, 3)


def three_sigma(values: np.ndarray) -> list[float]:
    kept = values[values != 0].astype(np.float64)
    reach = 3 * 1.482623 * np.median(np.abs(kept - np.median(kept)))
    return [np.median(kept) - reach, np.median(kept) + reach]


def test_three_sigma_of_normal_numbers_is_three_of_their_deviations():
    low, high = weight_range(
        np.random.default_rng(0).normal(2, 0.5, 200_000).astype(np.float32), Spec(), Estimate("threesigma")
    )
    assert (low, high) == pytest.approx((0.5, 3.5), abs=0.02)


def test_three_sigma_of_a_weight_is_that_of_each_channel_without_its_zeros():
    weight = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32) * (np.arange(40) % 3 > 0)
    weight[4] = 0
    low, high = weight_range(weight, Spec(axis=0), Estimate("threesigma"))
    np.testing.assert_allclose(np.stack([low, high], axis=1)[:4], [three_sigma(row) for row in weight[:4]])
    assert (low[4], high[4]) == (0, 0)


@given(seed=st.integers(0, 1000), share=st.floats(0, 0.9))
@settings(max_examples=30)
def test_three_sigma_of_a_histogram_is_that_of_the_values_within_its_bins(seed, share):
    rng = np.random.default_rng(seed)
    stream = [(rng.laplace(size=(2, 4000)) + 1) * (rng.random((2, 4000)) >= share) for _ in range(3)]
    histogram = Histogram.of(without_zeros(stream[0].astype(np.float32)))
    for rows in stream[1:]:
        histogram = histogram.add(without_zeros(rows.astype(np.float32)))
    low, high = stream_range(histogram, Estimate("threesigma"))
    for channel, values in enumerate(np.concatenate(stream, axis=1)):
        # the median may be off by a bin, and the deviation from it by two
        allowed = histogram.width[channel] * (1 + 2 * 3 * 1.482623)
        np.testing.assert_allclose([low[channel], high[channel]], three_sigma(values), atol=allowed)


def test_histogram_of_a_channel_that_is_all_zeros_at_first_can_grow():
    rows = [np.zeros((1, 9), np.float32), np.linspace(1, 2, 9, dtype=np.float32)[None]]
    histogram = Histogram.of(without_zeros(rows[0])).add(without_zeros(rows[1]))
    assert histogram.counts.sum() == 9
    assert stream_range(histogram, Estimate("threesigma"))[0][0] < 1.5


@pytest.mark.parametrize("kind", ["percentile", "mean_percentile"])
def test_percentiles_of_a_weight_are_those_of_each_channel(kind):
    weight = np.random.default_rng(2).normal(size=(3, 500)).astype(np.float32)
    low, high = weight_range(weight, Spec(axis=0), Estimate(kind, 0.4, 97.0))
    np.testing.assert_allclose(low, np.percentile(weight, 0.4, axis=1))
    np.testing.assert_allclose(high, np.percentile(weight, 97.0, axis=1))


@pytest.mark.parametrize("kind", ["mean_min_max", "mixed_min_max"])
def test_weight_is_one_sample_whose_means_are_its_ends(kind):
    weight = np.random.default_rng(3).normal(size=(3, 50)).astype(np.float32)
    for found, expected in zip(weight_range(weight, Spec(), Estimate(kind)), (weight.min(), weight.max()), strict=True):
        assert found == expected
