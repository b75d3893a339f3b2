import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from onnxqat import numerics as nx
from tests.models import model, outputs, random

SPECS = [
    (bits, signed, narrow) for bits in range(2, 9) for signed, narrow in ((True, False), (True, True), (False, False))
]
IDS = [f"{'int' if signed else 'uint'}{bits}{'-narrow' if narrow else ''}" for bits, signed, narrow in SPECS]
scales = st.floats(2.0**-20, 2.0**10, width=32).filter(lambda s: s > 0)
tensors = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=st.floats(-1e4, 1e4, width=32))


@pytest.mark.parametrize(("bits", "signed", "narrow"), SPECS, ids=IDS)
@given(scale=scales)
@settings(max_examples=10)
def test_every_code_survives_dequantize_and_quantize(bits, signed, narrow, scale):
    qmin, qmax = nx.integer_range(bits, signed=signed, narrow=narrow)
    codes = np.arange(qmin, qmax + 1)
    zero_point = (qmin + qmax) // 2
    assert np.array_equal(
        nx.quantize(nx.dequantize(codes, scale, zero_point), np.float32(scale), zero_point, qmin, qmax), codes
    )


@given(x=tensors, scale=scales)
def test_fake_quantize_changes_nothing_the_second_time(x, scale):
    once = nx.fake_quantize(x, np.float32(scale), 3, -128, 127)
    assert np.array_equal(nx.fake_quantize(once, np.float32(scale), 3, -128, 127), once)


QUANTIZE = "(float[A,B] x) => ({dtype}[A,B] q) {{ q = QuantizeLinear<axis=1>(x, s, z) }}"


@given(codes=hnp.arrays(np.int32, (3, 4), elements=st.integers(-300, 300)), exponent=st.integers(-6, 3))
@settings(max_examples=25)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantize_equals_quantize_linear_at_ties(dtype, codes, exponent):
    scale = np.float32(2.0**exponent)
    x = (codes.astype(np.float32) + np.float32(0.5)) * scale
    zero_point, info = np.array(7, dtype), np.iinfo(dtype)
    (expected,) = outputs(model(QUANTIZE.format(dtype=np.dtype(dtype).name), s=scale, z=zero_point), {"x": x})
    assert np.array_equal(nx.quantize(x, scale, zero_point, info.min, info.max), expected)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_quantize_and_dequantize_equal_the_runtime_per_channel(seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(5, 4)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    scale = rng.uniform(1e-3, 1, 4).astype(np.float32)
    zero_point = rng.integers(-128, 128, 4).astype(np.int8)
    body = """(float[A,B] x) => (int8[A,B] q, float[A,B] y) {
        q = QuantizeLinear<axis=1>(x, s, z)
        y = DequantizeLinear<axis=1>(q, s, z) }"""
    codes, floats = outputs(model(body, s=scale, z=zero_point), {"x": x})
    assert np.array_equal(nx.quantize(x, scale, zero_point, -128, 127, axis=1), codes)
    assert np.array_equal(nx.dequantize(codes, scale, zero_point, axis=1), floats)


@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((64, 5), 0, 16), ((5, 64), 1, 32), ((70, 5), 0, 32), ((5, 30), 1, 64)]
)
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_blocks_equal_the_reference_of_onnx_and_the_runtime(dtype, shape, axis, block):
    rng = np.random.default_rng(0)
    counts = nx.in_blocks(np.zeros(shape), axis, block).sum(axis=axis + 1).shape
    x, scale = random(*shape, scale=2.0), rng.uniform(0.1, 0.5, counts).astype(np.float32)
    low, high = (-8, 7) if dtype == "int4" else (0, 15)
    zero_point = rng.integers(low, high + 1, counts)
    body = f"""(float[A,B] x) => (float[A,B] y) {{
        q = QuantizeLinear<axis={axis}, block_size={block}>(x, s, z)
        y = DequantizeLinear<axis={axis}, block_size={block}>(q, s, z) }}"""
    codes = zero_point.astype(getattr(ml_dtypes, dtype))
    proto = model(body, opset=21, ir_version=10, s=scale, z=codes)
    found = nx.fake_quantize(x, scale, zero_point, low, high, axis, block)
    np.testing.assert_array_equal(found, outputs(proto, {"x": x})[0])
    if not shape[axis] % block:  # the reference knows no shorter blocks
        np.testing.assert_allclose(found, ReferenceEvaluator(proto).run(None, {"x": x})[0], rtol=1e-6)


def test_data_gradient_equals_torch_and_scale_gradient_too_per_tensor():
    x, dy = random(40, 30, scale=3), random(40, 30, seed=1)
    scale = torch.tensor([0.05], requires_grad=True)
    data = torch.tensor(x, requires_grad=True)
    torch._fake_quantize_learnable_per_tensor_affine(data, scale, torch.tensor([5.0]), -8, 7, 1.0).backward(
        torch.tensor(dy)
    )
    dx, dscale = nx.fake_quantize_gradient(dy, x, np.float32(0.05), 5, -8, 7)
    assert np.array_equal(dx, data.grad.numpy())
    # torch sums 1,200 terms in float32
    assert dscale == pytest.approx(scale.grad.item(), rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_data_gradient_equals_torch_and_scale_gradient_too_per_channel(axis):
    x, dy = random(6, 6, 6, scale=3), random(6, 6, 6, seed=1)
    scales = np.linspace(0.02, 0.4, 6, dtype=np.float32)
    scale, data = torch.tensor(scales, requires_grad=True), torch.tensor(x, requires_grad=True)
    torch._fake_quantize_learnable_per_channel_affine(data, scale, torch.zeros(6), axis % 3, -8, 7, 1.0).backward(
        torch.tensor(dy)
    )
    dx, dscale = nx.fake_quantize_gradient(dy, x, scales, 0, -8, 7, axis=axis)
    assert np.array_equal(dx, data.grad.numpy())
    np.testing.assert_allclose(dscale, scale.grad.numpy(), rtol=1e-5, atol=1e-5)


def surrogate(
    x: np.ndarray, scale: float, at: tuple[np.ndarray, float], zero_point: int, qmin: int, qmax: int
) -> np.ndarray:
    """(clip(x / s) + (rint(u) - u)) · s in float64, with the rounding residual frozen at u."""
    u = at[0] / at[1]
    inside = (np.rint(u) + zero_point >= qmin) & (np.rint(u) + zero_point <= qmax)
    bounded = np.where(inside, x / scale + (np.rint(u) - u), np.clip(np.rint(u), qmin - zero_point, qmax - zero_point))
    return bounded * scale


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_gradients_are_the_derivatives_of_the_surrogate(seed):
    rng = np.random.default_rng(seed)
    x, dy, v = (rng.normal(size=(50,)) for _ in range(3))
    scale, vs, step, grid = rng.uniform(0.05, 0.3), rng.normal(), 1e-6, (3, -8, 7)
    up, down = (surrogate(x + h * v, scale + h * vs, (x, scale), *grid) for h in (step, -step))
    numeric = float(np.sum(dy * (up - down)) / (2 * step))
    dx, dscale = nx.fake_quantize_gradient(dy, x, np.asarray(scale), *grid)
    # the results are float32
    assert float(np.sum(dx * v)) + float(dscale) * vs == pytest.approx(numeric, rel=1e-4, abs=1e-4)


FINITE = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FINITE = FINITE[np.isfinite(FINITE)]


def test_e4m3_equals_the_runtime_at_every_number_every_tie_and_beyond():
    ordered = np.unique(FINITE)
    x = np.concatenate([ordered, (ordered[1:] + ordered[:-1]) / 2, [463.9, 464, 1e9, -1e9], random(1000, scale=30)])
    text = "(float[N] x) => (float[N] y) { q = QuantizeLinear(x, one, zero) y = DequantizeLinear(q, one, zero) }"
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    proto = model(text, opset=19, ir_version=9, one=np.float32(1), zero=zero)
    (expected,) = outputs(proto, {"x": x.astype(np.float32)})
    assert np.array_equal(nx.e4m3(x.astype(np.float32)), expected)
    assert np.array_equal(nx.e4m3(ordered), ordered)


@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_of_e4m3_are_the_derivatives_of_the_surrogate(axis):
    x, dy, v = random(40, 5, scale=30).astype(np.float64), random(40, 5, seed=1), random(40, 5, seed=2)
    scale = np.asarray(0.05) if axis is None else np.linspace(0.03, 0.3, 5)
    vs = np.random.default_rng(3).normal(size=scale.shape)
    u = x / scale
    inside, residual = np.abs(u) <= 448, nx.e4m3(u) - u

    def surrogate(x, scale):
        return np.where(inside, x / scale + residual, np.sign(u) * 448) * scale

    up, down = (surrogate(x + h * v, scale + h * vs) for h in (1e-6, -1e-6))
    dx, dscale = nx.fake_quantize_e4m3_gradient(dy, x.astype(np.float32), scale.astype(np.float32), axis)
    assert 0 < inside.mean() < 1
    numeric = float(np.sum(dy * (up - down)) / 2e-6)
    # the results are float32
    assert float(np.sum(dx * v) + np.sum(dscale * vs)) == pytest.approx(numeric, rel=1e-4)


ranges = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(low=ranges, high=ranges, bits=st.integers(2, 8), signed=st.booleans(), symmetric=st.booleans())
def test_scale_is_positive_and_zero_has_a_code_and_the_range_fits(low, high, bits, signed, symmetric):
    low, high = min(low, high), max(low, high)
    qmin, qmax = nx.integer_range(bits, signed=signed)
    scale, zero_point = nx.scale_and_zero_point(low, high, qmin, qmax, symmetric=symmetric)
    assert scale.dtype == np.float32
    assert scale > 0
    assert qmin <= zero_point <= qmax
    steps = (np.array([min(low, 0), max(high, 0)]) / np.float64(scale)) + zero_point
    # asymmetric ranges are shifted onto the grid by half a step at most
    slack = 1e-3 if symmetric else 0.501
    assert qmin - slack <= steps[0]
    assert steps[1] <= qmax + slack


def test_symmetric_range_without_negatives_starts_at_the_lowest_unsigned_code():
    assert nx.scale_and_zero_point(0.0, 5.1, 0, 255, symmetric=True)[1] == 0


def test_symmetric_unsigned_range_with_negatives_has_its_zero_in_the_middle():
    assert nx.scale_and_zero_point(-1.0, 5.1, 0, 255, symmetric=True)[1] == 128


def test_channel_without_range_gets_a_share_of_the_widest_scale():
    scale, _ = nx.scale_and_zero_point(np.zeros(3), np.array([0.0, 1e-30, 127.0]), -128, 127, symmetric=True)
    assert scale.tolist() == [nx.CHANNEL_SCALE_FLOOR, nx.CHANNEL_SCALE_FLOOR, 1.0]


def test_tensor_of_zeros_gets_scale_one():
    assert nx.scale_and_zero_point(0.0, 0.0, -128, 127, symmetric=True)[0] == 1


@pytest.mark.parametrize("bits", [1, 17])
def test_width_out_of_range_is_refused(bits):
    with pytest.raises(ValueError, match="2 to 16"):
        nx.integer_range(bits, signed=True)


codes = st.integers(-128, 127)


@given(first=codes, second=codes, largest=st.integers(1, 255))
def test_pair_saturates_where_some_data_takes_its_sum_beyond_sixteen_bits(first, second, largest):
    sums = [a * first + b * second for a in (0, largest) for b in (0, largest)]  # linear: the corners are the extremes
    beyond = any(total != np.clip(total, -(2**15), 2**15 - 1) for total in sums)
    assert nx.saturates(np.array(first), np.array(second), largest) == beyond


def test_pair_saturates_from_a_sum_of_129_on_at_eight_bits_and_never_at_seven():
    first = np.arange(-128, 128)[:, None]
    second = np.arange(-128, 128)[None]
    expected = ((first > 0) == (second > 0)) & (np.abs(first) + np.abs(second) >= 129)
    assert np.array_equal(nx.saturates(first, second, 255), expected)
    assert not nx.saturates(first, second, 127).any()
    assert not nx.saturates(first[64:192], second[:, 64:192], 255).any()


weights_in_pairs = hnp.arrays(np.float32, (3, 6, 2), elements=st.floats(-8, 8, width=32))


def reach_of(pairs):
    """Reach of weights [C, P, 2], each of them a pair."""
    sums = pairs.astype(np.float64).sum(axis=-1)
    return nx.Reach(
        low=pairs.min(axis=(1, 2), initial=0),
        high=pairs.max(axis=(1, 2), initial=0),
        pair_low=sums.min(axis=1, initial=0),
        pair_high=sums.max(axis=1, initial=0),
    )


@given(pairs=weights_in_pairs, asymmetric=st.booleans(), grown=st.sampled_from([1.0, 1.0009765625, 3.0]))
def test_pair_safe_scale_leaves_no_pair_that_saturates_and_no_lowest_code(pairs, asymmetric, grown):
    reach = reach_of(pairs)
    zero_point = nx.pair_safe_zero_point(reach) if asymmetric else np.zeros(3, np.int32)
    scale = nx.floor_scale(nx.pair_safe_scale(reach, zero_point) * grown)
    q = nx.quantize(pairs, scale, zero_point, -128, 127, axis=0)
    assert not nx.saturates(q[..., 0], q[..., 1], 255).any()
    assert q.min() >= -127


@given(k=st.integers(0, 63))
def test_pair_safe_scale_holds_where_both_weights_lie_on_ties(k):
    """63.5 and 63.5 round to 64 each: 128 together, which still fits."""
    pair = np.float32([[[k + 0.5, 126.5 - k]]])
    scale = np.float32(nx.pair_safe_scale(reach_of(pair), 0))
    q = nx.quantize(pair, scale, 0, -128, 127, axis=0)
    assert scale == 1
    assert q.sum() <= 128


def test_pair_safe_scale_of_symmetric_weights_is_the_largest_same_sign_sum_by_127():
    pairs = np.float32([[[1, 2], [-3, -1]], [[1, -5], [2, 0]]])
    assert np.array_equal(nx.pair_safe_scale(reach_of(pairs), 0), np.array([4, 5]) / 127)
