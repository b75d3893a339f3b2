import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.estimators.table import ESTIMATORS, Estimate
from onnxqat.insertion.calibration.calibrate import Observed, Observer, calibrate
from onnxqat.numerics import scale_and_zero_point
from tests.models import model, random

STREAM = [random(4, 3, 5, seed=n, scale=1.0 + n) for n in range(5)]
EVERYTHING = np.concatenate(STREAM)


def observed(kind: str, axis: int | None = None, stream=STREAM, *, low=1.0, high=99.0) -> Observer:
    observer = Observer(axis, Estimate(kind, low, high))
    for x in stream:
        observer.observe(x)
    return observer


def ranged(*args, symmetric: bool = False, **settings):
    return observed(*args, **settings).range(256, symmetric=symmetric)


def test_min_max_is_that_of_the_whole_stream():
    assert ranged("min_max") == (EVERYTHING.min(), EVERYTHING.max())


@pytest.mark.parametrize("kind", ["min_max", "mixed_min_max"])
def test_min_max_per_channel_runs_along_the_axis(kind):
    low, high = ranged(kind, 1)
    np.testing.assert_array_equal(low, EVERYTHING.min(axis=(0, 2)))
    np.testing.assert_array_equal(high, EVERYTHING.max(axis=(0, 2)))


@pytest.mark.parametrize("kind", ["mean_min_max", "mixed_min_max"])
def test_mean_min_max_averages_over_samples(kind):
    samples = EVERYTHING.reshape(20, -1)
    assert ranged(kind) == pytest.approx((samples.min(axis=1).mean(), samples.max(axis=1).mean()))


@pytest.mark.parametrize("kind", ["mean_min_max", "mixed_min_max"])
def test_means_are_of_magnitudes_where_the_zero_point_is_fixed(kind):
    mean = np.abs(EVERYTHING).reshape(20, -1).max(axis=1).mean()
    assert ranged(kind, symmetric=True) == pytest.approx((-mean, mean))
    positive = [np.abs(x) for x in STREAM]
    assert ranged(kind, None, positive, symmetric=True) == pytest.approx((0, mean))


@pytest.mark.parametrize("axis", [None, 1])
def test_mean_percentile_averages_the_percentiles_of_samples(axis):
    samples = EVERYTHING.reshape(20, 1, -1) if axis is None else EVERYTHING
    expected = np.percentile(samples, [2.0, 90.0], axis=2).mean(axis=1)
    low, high = ranged("mean_percentile", axis, low=2.0, high=90.0)
    np.testing.assert_allclose(low, expected[0, 0] if axis is None else expected[0], rtol=1e-6)
    np.testing.assert_allclose(high, expected[1, 0] if axis is None else expected[1], rtol=1e-6)


def test_three_sigma_stays_within_the_values_and_leaves_zeros_out():
    positive = [np.maximum(x, 0) for x in STREAM]
    kept = np.concatenate(positive)[np.concatenate(positive) != 0].astype(np.float64)
    reach = 3 * 1.482623 * np.median(np.abs(kept - np.median(kept)))
    observer = observed("threesigma", None, positive)
    low, high = observer.range(256, symmetric=False)
    assert low == 0
    assert high == pytest.approx(min(np.median(kept) + reach, kept.max()), abs=10 * observer.histogram.width[0])


@pytest.mark.parametrize("estimator", ["percentile", "mse", "threesigma"])
@pytest.mark.parametrize("ceiling", [6.0, 5.9])
def test_range_of_a_clipped_value_never_exceeds_the_clip(estimator, ceiling):
    tops = enumerate((0.7, 3.0, ceiling))
    stream = [np.clip(random(4, 100, seed=n, scale=20.0), 0, np.float32(top)) for n, top in tops]
    low, high = ranged(estimator, None, stream, low=0.0, high=100.0)
    assert scale_and_zero_point(low, high, 0, 255, symmetric=False)[1] == 0
    assert high <= np.float32(ceiling)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_memory_does_not_grow_with_the_stream(kind):
    observer = observed(kind)
    tracemalloc.start()
    for n in range(30):
        observer.observe(random(4, 3, 5000, seed=n))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 4 * 3 * 5000 * 4


def test_scalars_are_observed_and_empty_arrays_skipped():
    parts = (np.float32(3).reshape(()), np.zeros((0, 4), np.float32), np.float32(-1).reshape(()))
    assert observed("mse", None, parts).low == -1
    assert ranged("min_max", None, parts) == (-1, 3)


def doubled() -> tuple[ir.Model, ir.Value]:
    net = ir.from_proto(model("(float[N,2] x) => (float[N,2] y) { y = Add(x, x) }"))
    return net, net.graph.outputs[0]


@pytest.mark.parametrize(("samples", "expected"), [(None, 10), (1, 2), (4, 2), (5, 4), (9, 6)], ids=str)
def test_as_many_samples_count_as_are_asked_for(samples, expected):
    net, value = doubled()
    batches = [{"x": np.full((4, 2), n, np.float32)} for n in range(1, 6)]
    wanted = Observed(value, None, Estimate("min_max", samples=samples))
    found = calibrate(net, [wanted], batches, progress=lambda items, what: items)
    assert found[wanted].high == expected


def test_reading_ends_when_every_value_has_its_samples():
    net, value = doubled()
    read = []

    def batches():
        for n in range(100):
            read.append(n)
            yield {"x": np.ones((4, 2), np.float32)}

    wanted = [Observed(value, None, Estimate("min_max", samples=count)) for count in (3, 8)]
    found = calibrate(net, wanted, batches(), progress=lambda items, what: items)
    assert len(read) == 2
    assert [found[one].samples for one in wanted] == [3, 8]


def test_value_that_is_not_finite_is_refused():
    net, value = doubled()
    huge = [{"x": np.full((1, 2), 3e38, np.float32)}]
    with pytest.raises(InputError, match=r"'y', the result of \w+ '.*', is infinite on batch 0"):
        calibrate(net, [Observed(value, None, Estimate())], huge, progress=lambda items, what: items)


@pytest.mark.parametrize("samples", [None, 50], ids=str)
@pytest.mark.parametrize("axis", [None, 1], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_range_does_not_depend_on_how_the_samples_are_cut_into_batches(kind, axis, samples):
    scales = np.linspace(0.1, 3, 64)[:, None]
    rows = np.random.default_rng(7).laplace(0.3, scales, (64, 20)).astype(np.float32)
    net, value = doubled()
    net.graph.inputs[0].shape = value.shape = ir.Shape(["N", 20])
    wanted = Observed(value, axis, Estimate(kind, 1.0, 99.0, samples))
    ranges = []
    for size in (1, 7, 64):
        batches = [{"x": rows[start : start + size]} for start in range(0, 64, size)]
        found = calibrate(net, [wanted], batches, progress=lambda items, what: items)
        ranges.append(found[wanted].range(256, symmetric=False))
    for low, high in ranges[1:]:
        np.testing.assert_allclose(low, ranges[0][0], rtol=1e-12)
        np.testing.assert_allclose(high, ranges[0][1], rtol=1e-12)


def test_only_zeros_are_named(caplog):
    proto = model(
        "(float[N,3] x, float[N,3] z) => (float[N,2] y) { a = MatMul(x, w) b = MatMul(z, v) y = Add(a, b) }",
        w=random(3, 2),
        v=random(3, 2),
    )
    batch = {"x": random(4, 3), "z": np.zeros((4, 3), np.float32)}
    onnxqat.insert(proto, [batch])
    assert "only zeros in 'z'" in caplog.text
    with pytest.raises(InputError, match="only zeros in 'x', 'z'"):
        onnxqat.insert(proto, [{"x": batch["z"], "z": batch["z"]}])


@pytest.mark.parametrize(
    "estimate", [Estimate("mse"), Estimate("mean_min_max", samples=5)], ids=["mse", "some samples"]
)
def test_ranges_do_not_depend_on_the_number_of_cores(estimate, monkeypatch):
    body = "(float[N,6] x) => (float[N,4] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }"
    data = [{"x": random(rows, 6, seed=rows)} for rows in (7, 3, 1)]

    def ranges(cores):
        monkeypatch.setattr("onnxqat.runtime.parted.cores", lambda: cores)
        loaded = ir.from_proto(model(body, w=random(6, 5), v=random(5, 4)))
        wanted = [Observed(node.outputs[0], None, estimate) for node in loaded.graph]
        found = calibrate(loaded, wanted, data, progress=lambda items, text: items)
        return [found[one].range(256, symmetric=False) for one in wanted]

    np.testing.assert_allclose(ranges(3), ranges(1), rtol=1e-6)
