"""Pairs of products that are added in 16 bits: against enumerations written from the description of each kernel."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxqat import Config, fold, insert
from onnxqat.graph import io
from onnxqat.graph.pairs import paired_layers
from tests.models import model, random

QUANTIZED = "q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) w = DequantizeLinear<axis={axis}>(c, sw, zw)"


def layer_of(node, rank, codes, *, axis=0, zx="uint8", scales=None, attributes=""):
    """The paired layers of a model of one node that reads codes."""
    dims = ",".join(f"D{i}" for i in range(rank))
    outs = ",".join(f"E{i}" for i in range(rank))
    body = f"(float[{dims}] x) => (float[{outs}] y) {{ {QUANTIZED.format(axis=axis)} y = {node}{attributes}(d, w) }}"
    sw = np.ones(codes.shape[axis], np.float32) if scales is None else scales
    weights = {
        "c": codes,
        "sw": sw,
        "zw": np.zeros(sw.shape, codes.dtype),
        "sx": np.float32(0.1),
        "zx": np.zeros((), zx),
    }
    return paired_layers(io.load(model(body, **weights)))


def neighbours(order):
    """Elements in the order of the reduction, two by two; the odd one's partner is None."""
    return {frozenset(pair) for pair in itertools.zip_longest(order[0::2], order[1::2])}


def found(layer, codes, runtime, processor=0):
    """Returns what the layer says: for each row, the pairs of weight indices, on AVX2 or on another processor."""
    pairing = layer.pairings(runtime)[processor]
    positions = layer.pairs(np.arange(codes.size).reshape(codes.shape), pairing, fill=-1)
    where = [None if p < 0 else tuple(int(i) for i in np.unravel_index(p, codes.shape)) for p in range(codes.size)]
    return [{frozenset(where[p] if p >= 0 else None for p in pair) for pair in row} for row in positions]


@given(
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 2),
    groups=st.integers(1, 3),
)
@settings(max_examples=60)
def test_pairs_of_convolutions_are_those_of_the_kernels(kernel, inputs, outputs, groups):
    codes = np.zeros((outputs * groups, inputs, *kernel), np.int8)
    layers = layer_of("Conv", len(kernel) + 2, codes, attributes=f"<group={groups}>")
    if inputs == outputs == 1:
        assert layers == []
        return
    (layer,) = layers
    taps = list(itertools.product(*map(range, kernel)))
    for o in range(len(codes)):
        ort = neighbours([(o, i, *tap) for tap in taps for i in range(inputs)])
        openvino = set().union(*(neighbours([(o, i, *tap) for i in range(inputs)]) for tap in taps))
        assert found(layer, codes, "ort")[o] == ort
        on_avx2 = ort if groups > 1 and inputs % 2 else openvino
        assert found(layer, codes, "openvino")[o] == on_avx2
        if len(layer.pairings("openvino")) > 1 and groups > 1:
            assert found(layer, codes, "openvino", 1)[o] == openvino


@pytest.mark.parametrize("groups", [1, 3])
def test_openvino_on_avx512_adds_taps_of_a_single_channel_along_the_height(groups):
    codes = np.zeros((2 * groups, 1, 3, 2), np.int8)
    (layer,) = layer_of("Conv", 4, codes, attributes=f"<group={groups}>")
    assert layer.pairings("openvino")[-1] == "columns"
    rows = found(layer, codes, "openvino", -1)
    assert rows == [neighbours([(o, 0, h, w) for w in range(2) for h in range(3)]) for o in range(2 * groups)]


@pytest.mark.parametrize(
    ("rank", "attributes"), [(3, ""), (5, ""), (4, "<dilations=[2,1]>")], ids=["1-D", "3-D", "dilated"]
)
def test_only_flat_convolutions_without_dilations_are_added_along_the_height(rank, attributes):
    (layer,) = layer_of("Conv", rank, np.zeros((2, 1, *[3] * (rank - 2)), np.int8), attributes=attributes)
    assert "columns" not in layer.pairings("openvino")


@given(kernel=st.integers(1, 3), inputs=st.integers(1, 4), outputs=st.integers(1, 3), groups=st.integers(1, 2))
@settings(max_examples=30)
def test_pairs_of_transposed_convolutions_are_channels_of_a_group_at_one_tap(kernel, inputs, outputs, groups):
    codes = np.zeros((inputs * groups, outputs, kernel), np.int8)
    layers = layer_of("ConvTranspose", 3, codes, axis=1, attributes=f"<group={groups}>")
    if inputs == outputs == 1:
        assert layers == []
        return
    (layer,) = layers
    assert layer.runtimes == ("openvino",)
    rows = found(layer, codes, "openvino")
    for g, o in itertools.product(range(groups), range(outputs)):
        ours = [[(g * inputs + i, o, tap) for i in range(inputs)] for tap in range(kernel)]
        assert rows[g * outputs + o] == set().union(*map(neighbours, ours))


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
@pytest.mark.parametrize(
    ("node", "shape", "axis", "attributes", "index"),
    [
        ("MatMul", (5, 3), 1, "", lambda n, k: (k, n)),
        ("Gemm", (4, 3), 1, "", lambda n, k: (k, n)),
        ("Gemm", (3, 5), 0, "<transB=1>", lambda n, k: (n, k)),
    ],
    ids=["matmul", "gemm", "gemm-transposed"],
)
def test_pairs_of_matrix_products_are_neighbours_of_the_reduction(runtime, node, shape, axis, attributes, index):
    codes = np.zeros(shape, np.int8)
    (layer,) = layer_of(node, 2, codes, axis=axis, attributes=attributes)
    inputs = shape[1 - axis]
    expected = [neighbours([index(n, k) for k in range(inputs)]) for n in range(3)]
    assert found(layer, codes, runtime) == expected


def test_matrices_in_a_batch_are_rows_of_their_own():
    codes = np.zeros((2, 4, 3), np.int8)
    (layer,) = layer_of("MatMul", 3, codes, scales=np.float32(0.1))
    rows = found(layer, codes, "ort")
    assert rows == [neighbours([(b, k, n) for k in range(4)]) for b in range(2) for n in range(3)]


@pytest.mark.parametrize(
    ("shape", "node", "axis", "attributes"),
    [
        ((4, 3, 2, 3), "Conv", 0, ""),
        ((4, 4, 2, 3), "Conv", 0, "<group=2>"),
        ((4, 1, 2, 3), "Conv", 0, "<group=2>"),
        ((4, 3, 2, 1), "ConvTranspose", 1, "<group=2>"),
        ((7, 3), "MatMul", 1, ""),
    ],
)
@pytest.mark.parametrize("per_channel", [True, False], ids=["per-channel", "per-tensor"])
def test_reach_is_that_of_all_pairs_of_both_runtimes(shape, node, axis, attributes, per_channel):
    weight = random(*shape)
    scales = None if per_channel else np.float32(1)
    (layer,) = layer_of(node, len(shape), weight.astype(np.int8), axis=axis, attributes=attributes, scales=scales)
    pairings = {pairing for runtime in layer.runtimes for pairing in layer.pairings(runtime)}
    every = [layer.pairs(weight, pairing).sum(axis=-1) for pairing in pairings]
    sums = np.concatenate(every, axis=1).reshape(-1, shape[axis], sum(e.shape[1] for e in every)).swapaxes(0, 1)
    channels = np.moveaxis(weight, axis, 0).reshape(shape[axis], -1)
    low, high = sums.min(axis=(1, 2), initial=0), sums.max(axis=(1, 2), initial=0)
    reach = layer.reach(weight)
    assert np.array_equal(reach.pair_low, low if per_channel else low.min())
    assert np.array_equal(reach.pair_high, high if per_channel else high.max())
    assert np.array_equal(reach.high, channels.max(axis=1, initial=0) if per_channel else weight.max())
    assert np.array_equal(reach.low, channels.min(axis=1, initial=0) if per_channel else weight.min())


def test_weights_of_unsigned_codes_are_multiplied_exactly():
    assert layer_of("Conv", 4, np.zeros((2, 2, 1, 1), np.uint8)) == []


@pytest.mark.parametrize(("low", "high", "paired"), [(0, 255, True), (0, 128, True), (0, 127, False), (0, 15, False)])
def test_data_of_seven_bits_cannot_saturate(low, high, paired):
    body = """(float[N,2] x) => (float[N,2] y) { q = QuantizeLinear(x, sx, zx) k = Clip(q, lo, hi)
        d = DequantizeLinear(k, sx, zx) w = DequantizeLinear(c, sw, zw) y = MatMul(d, w) }"""
    weights = {"c": np.zeros((2, 2), np.int8), "sw": np.float32(1), "zw": np.int8(0), "sx": np.float32(0.1)}
    proto = model(body, **weights, zx=np.uint8(0), lo=np.uint8(low), hi=np.uint8(high))
    assert bool(paired_layers(io.load(proto))) == paired


def test_signed_data_is_read_as_unsigned_codes():
    (layer,) = layer_of("MatMul", 2, np.zeros((2, 2), np.int8), axis=1, zx="int8")
    assert layer.largest == 255


def test_signed_data_of_few_bits_is_read_from_the_middle_of_the_unsigned_codes():
    body = """(float[N,2] x) => (float[N,2] y) { q = QuantizeLinear(x, sx, zx) k = Clip(q, lo, hi)
        d = DequantizeLinear(k, sx, zx) w = DequantizeLinear(c, sw, zw) y = MatMul(d, w) }"""
    weights = {"c": np.zeros((2, 2), np.int8), "sw": np.float32(1), "zw": np.int8(0), "sx": np.float32(0.1)}
    (layer,) = paired_layers(io.load(model(body, **weights, zx=np.int8(0), lo=np.int8(0), hi=np.int8(7))))
    assert (layer.offset, layer.largest) == (128, 135)


def test_weights_of_seven_bits_cannot_saturate():
    body = """(float[N,2] x) => (float[N,2] y) { q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx)
        p = QuantizeLinear(w, sw, zw) k = Clip(p, lo, hi) v = DequantizeLinear(k, sw, zw) y = MatMul(d, v) }"""
    weights = {"w": random(2, 2), "sw": np.float32(1), "zw": np.int8(0), "sx": np.float32(0.1), "zx": np.uint8(0)}
    assert paired_layers(io.load(model(body, **weights, lo=np.int8(-64), hi=np.int8(63)))) == []
    assert len(paired_layers(io.load(model(body, **weights, lo=np.int8(-65), hi=np.int8(64))))) == 1


def test_float_layers_and_products_of_two_activations_are_left_out():
    body = """(float[N,2] x, float[2,2] z) => (float[N,2] y, float[N,2] t) { q = QuantizeLinear(x, sx, zx)
        d = DequantizeLinear(q, sx, zx) p = QuantizeLinear(z, sx, zx) e = DequantizeLinear(p, sx, zx)
        y = MatMul(d, e) w = DequantizeLinear(c, sw, zw) t = MatMul(x, w) }"""
    weights = {"c": np.zeros((2, 2), np.int8), "sw": np.float32(1), "zw": np.int8(0), "sx": np.float32(0.1)}
    assert paired_layers(io.load(model(body, **weights, zx=np.uint8(0)))) == []


def test_data_may_be_moved_between_its_quantizer_and_the_layer():
    body = """(float[N,2,4,4] x) => (float[N,2,2,2] y) { q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx)
        m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d) w = DequantizeLinear(c, sw, zw) y = Conv(m, w) }"""
    weights = {"c": np.ones((2, 2, 1, 1), np.int8), "sw": np.float32(1), "zw": np.int8(0), "sx": np.float32(0.1)}
    (layer,) = paired_layers(io.load(model(body, **weights, zx=np.uint8(3))))
    assert layer.data.scale.name == "sx"
    assert np.array_equal(layer.weight.codes, np.ones((2, 2, 1, 1)))


@pytest.mark.parametrize(("second", "paired"), [("sx", True), ("sz", False)])
def test_data_may_be_joined_on_one_grid_between_its_quantizers_and_the_layer(second, paired):
    body = f"""(float[N,2] x, float[N,2] z) => (float[N,2] y) {{ q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx)
        p = QuantizeLinear(z, {second}, zx) e = DequantizeLinear(p, {second}, zx) j = Concat<axis=1>(d, e)
        w = DequantizeLinear(c, sw, zw) y = MatMul(j, w) }}"""
    weights = {"c": np.zeros((4, 2), np.int8), "sw": np.float32(1), "zw": np.int8(0), "zx": np.uint8(128)}
    scales = {"sx": np.float32(0.1)} | ({} if paired else {"sz": np.float32(0.2)})
    assert bool(paired_layers(io.load(model(body, **weights, **scales)))) == paired


def test_weights_behind_a_concat_cannot_saturate_in_openvino():
    body = "a = Conv(x, u) b = Conv(x, v) c = Concat<axis=1>(a, b) y = Conv(c, w)"
    weights = {"u": random(2, 2, 1, 1), "v": random(2, 2, 1, 1), "w": np.full((2, 4, 1, 1), 0.5, np.float32)}
    proto = model(f"(float[N,2,4,4] x) => (float[N,2,4,4] y) {{ {body} }}", **weights)
    deployed = fold(insert(proto, [{"x": random(8, 2, 4, 4)}], Config(target="openvino")))
    (codes,) = [numpy_helper.to_array(one) for one in deployed.graph.initializer if tuple(one.dims) == (2, 4, 1, 1)]
    assert codes.reshape(2, 2, 2).astype(int).sum(axis=2).max() * 255 <= 2**15 - 1
