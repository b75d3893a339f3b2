"""Weights that `insert` holds to scales at which no processor saturates."""

import numpy as np
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion import insert
from tests.models import batches, model, operators, random
from tests.saturation import lowest_code, saturating


def positive(*shape, seed=0):
    """Weights of one sign, so that every pair adds up."""
    return np.abs(random(*shape, seed=seed)) + np.float32(0.05)


def signed(*shape, seed=0):
    """Weights whose largest is negative: the code -128 is near."""
    weight = random(*shape, seed=seed)
    return np.where(np.abs(weight) == np.abs(weight).max(), -np.abs(weight), weight)


#: A body, its weight, and what is read: each becomes an integer layer of its target.
LAYERS = {
    "conv1d": ("(float[N,3,9] x) => (float[N,4,E] y) { y = Conv(x, w) }", (4, 3, 3)),
    "conv2d": ("(float[N,4,8,8] x) => (float[N,5,E,F] y) { y = Conv(x, w) }", (5, 4, 3, 3)),
    "odd channels": ("(float[N,3,8,8] x) => (float[N,5,E,F] y) { y = Conv(x, w) }", (5, 3, 3, 2)),
    "conv3d": ("(float[N,2,5,5,5] x) => (float[N,3,E,F,G] y) { y = Conv(x, w) }", (3, 2, 2, 2, 2)),
    "grouped": ("(float[N,6,8,8] x) => (float[N,4,E,F] y) { y = Conv<group=2>(x, w) }", (4, 3, 3, 3)),
    "one channel, two out": ("(float[N,2,8,8] x) => (float[N,4,E,F] y) { y = Conv<group=2>(x, w) }", (4, 1, 3, 3)),
    "gemm": ("(float[N,7] x) => (float[N,5] y) { y = Gemm(x, w) }", (7, 5)),
    "gemm, transposed": ("(float[N,7] x) => (float[N,5] y) { y = Gemm<transB=1>(x, w) }", (5, 7)),
    "matmul": ("(float[N,3,7] x) => (float[N,3,5] y) { y = MatMul(x, w) }", (7, 5)),
    "matmul, batched": ("(float[N,2,3,7] x) => (float[N,2,3,5] y) { y = MatMul(x, w) }", (2, 7, 5)),
    "matmul by a vector": ("(float[N,3,7] x) => (float[N,3] y) { y = MatMul(x, w) }", (7,)),
}
TRANSPOSED = ("(float[N,4,8,8] x) => (float[N,6,E,F] y) { y = ConvTranspose<group=2>(x, w) }", (4, 3, 3, 3))


def deployed(body, weight, **settings):
    proto = model(body, w=weight)
    return fold(insert(proto, batches(proto), Config(**settings)))


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("weights", [positive, signed])
@pytest.mark.parametrize(
    ("name", "target"), [*((n, t) for n in LAYERS for t in ("ort-cpu", "openvino")), ("transposed", "openvino")]
)
def test_no_pair_of_weights_saturates_and_no_code_is_the_lowest(name, target, weights, granularity, symmetric):
    body, shape = {**LAYERS, "transposed": TRANSPOSED}[name]
    settings = {"target": target, "weight_granularity": granularity, "weight_symmetric": symmetric}
    (count,) = saturating(deployed(body, weights(*shape), **settings)).values()
    assert count == 0
    assert lowest_code(deployed(body, weights(*shape), **settings)) >= -127


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_weights_saturate_where_nothing_holds_them(name):
    body, shape = LAYERS[name]
    (count,) = saturating(deployed(body, positive(*shape), overflow_fix="disable")).values()
    assert count > 0


def scale_of(proto):
    (weight,) = [q for q in quantizers(io.load(proto)) if q.is_weight]
    return weight.scales


def test_scale_is_the_largest_sum_of_a_pair_of_one_sign_by_127():
    weight = np.float32([[[[1]], [[2]], [[-3]], [[-0.5]]], [[[5]], [[-4]], [[1]], [[0]]]])  # [2,4,1,1]
    proto = model("(float[N,4,2,2] x) => (float[N,2,2,2] y) { y = Conv(x, w) }", w=weight)
    scales = scale_of(insert(proto, batches(proto), Config()))
    np.testing.assert_allclose(scales, np.array([3.5, 5]) / 127, rtol=1e-6)


def test_odd_channels_are_held_in_the_pairs_of_both_runtimes():
    """Taps a, b of channels 0, 1, 2: OpenVINO adds (a0, a1), (b0, b1); ONNX Runtime (a0, a1), (a2, b0), (b1, b2)."""
    body = "(float[N,3,2] x) => (float[N,1,1] y) { y = Conv(x, w) }"
    for at, alone in ((([2, 0], [0, 1]), "ort"), (([0, 1], [1, 1]), "openvino")):
        weight = np.zeros((1, 3, 2), np.float32)
        for channel, tap in at:
            weight[0, channel, tap] = 1
        proto = model(body, w=weight)
        np.testing.assert_allclose(scale_of(insert(proto, batches(proto), Config())), 2 / 127, rtol=1e-6, err_msg=alone)


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_depthwise_weights_keep_the_scale_of_the_largest(target):
    weight = positive(4, 1, 3, 3)
    proto = model("(float[N,4,8,8] x) => (float[N,4,6,6] y) { y = Conv<group=4>(x, w) }", w=weight)
    inserted = insert(proto, batches(proto), Config(target=target))
    np.testing.assert_allclose(scale_of(inserted), weight.max(axis=(1, 2, 3)) / 127, rtol=1e-6)


def test_weights_that_read_seven_bits_keep_the_scale_of_the_largest():
    weight = positive(5, 4, 1, 1)
    proto = model("(float[N,4,8,8] x) => (float[N,5,8,8] y) { y = Conv(x, w) }", w=weight)
    inserted = insert(proto, batches(proto), Config(activation_bits=7, first_last_bits=None, output_correction="none"))
    np.testing.assert_allclose(scale_of(inserted), weight.max(axis=(1, 2, 3)) / 127, rtol=1e-6)


def test_8_bit_layers_of_a_4_bit_model_are_held():
    body = "(float[N,4,8,8] x) => (float[N,4,8,8] y) { a = Conv(x, w) r = Relu(a) b = Conv(r, v) s = Relu(b) y = Conv(s, u) }"
    proto = model(body, w=positive(4, 4, 1, 1), v=positive(4, 4, 1, 1, seed=1), u=positive(4, 4, 1, 1, seed=2))
    for name, node in zip("wvu", proto.graph.node[::2], strict=True):
        node.name = name
    found = saturating(fold(insert(proto, batches(proto), Config(weight_bits=4, activation_bits=4))))
    assert found == {"w": 0, "u": 0}


def test_weight_of_several_layers_is_held_in_the_pairs_of_all():
    body = """(float[N,4,1,1] x, float[N,4,1,1] z) => (float[N,4,1,1] y, float[N,4,1,1] t) {
        a = Relu(x) y = Conv(a, w) b = Relu(z) t = Conv(b, w) }"""
    proto = model(body, w=positive(4, 4, 1, 1))
    assert set(saturating(fold(insert(proto, batches(proto), Config()))).values()) == {0}
    gemms = "(float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] t) { y = Gemm(x, w) t = Gemm<transB=1>(z, w) }"
    proto = model(gemms, w=positive(4, 4))
    assert set(saturating(fold(insert(proto, batches(proto), Config()))).values()) == {0}


def test_held_weights_need_no_clip_in_the_model():
    body, shape = LAYERS["conv2d"]
    for target in ("ort-cpu", "openvino"):
        proto = model(body, w=signed(*shape))
        assert "Clip" not in operators(insert(proto, batches(proto), Config(target=target)))


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_lowest_code_is_left_out_where_nothing_holds_the_weights(target):
    body, shape = LAYERS["conv2d"]
    weight = signed(*shape)
    assert (
        lowest_code(deployed(body, weight, target=target, overflow_fix="disable", weight_granularity="per_tensor"))
        == -127
    )


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
def test_fitted_zero_points_at_an_end_leave_depthwise_weights_a_finite_scale(sign):
    weight = sign * positive(4, 1, 3, 3)
    proto = model("(float[N,4,8,8] x) => (float[N,4,6,6] y) { y = Conv<group=4>(x, w) }", w=weight)
    inserted = insert(proto, batches(proto), Config(weight_symmetric=False))
    assert np.isfinite(scale_of(inserted)).all()
    assert lowest_code(fold(inserted)) >= -127
