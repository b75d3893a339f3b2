"""The target `tensorrt`, by structure (no GPU is at hand): NVIDIA's rules of placement, and the answers of the simulation."""

import re

import numpy as np
import onnx
import pytest

import onnxqat
from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests import stock
from tests.models import array, batches, chain, model, node, operators, outputs
from tests.models import random as r

WEIGHTS = {
    "w": r(16, 16, 3, 3),
    "b": r(16),
    "v": r(16, 16, 1, 1, seed=1),
    "u": r(16, 16, 2, 2, seed=2),
    "few": r(4, 16, 1, 1),
    "back": r(16, 4, 1, 1),
    "deep": r(16, 1, 3, 3),
    "axes": np.array([1, 2]),
}
IMAGE = "(float[2,16,8,8] x) => (float[2,C,H,W] y)"


def quantized(nodes: str, header: str = IMAGE, *, opset: int = 17, **more: np.ndarray) -> onnx.ModelProto:
    used = {name: value for name, value in (WEIGHTS | more).items() if re.search(rf"\b{name}\b", nodes)}
    proto = model(f"{header} {{ {nodes} }}", opset=opset, **used)
    return insert(proto, batches(proto, 1), Config(target="tensorrt"))


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    return {n.op_type: p.value for n in proto.graph.node for p in n.metadata_props if p.key == "onnxqat.float"}


def grids(proto: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Names of scale and zero point of the pair at each value."""
    return {n.input[0]: (n.input[1], n.input[2]) for n in proto.graph.node if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Conv(r, v)", "Q DQ Conv Relu Q DQ Conv"),
        ("c = Conv(x, v) s = Sigmoid(c) m = Mul(c, s) y = Conv(m, v)", "Q DQ Conv Sigmoid Mul Q DQ Conv"),
        ("c = Conv<pads=[1,1,1,1]>(x, w, b) s = Add(c, x) y = Relu(s)", "Q DQ Conv Add Relu"),
        ("c = Conv(x, v) s = Add(c, x) r = Relu(s) y = Conv(r, v)", "Q DQ Conv Add Relu Q DQ Conv"),
        ("c = Conv(x, v) d = Conv(c, v) e = Conv(x, v) y = Add(e, d)", "Q DQ Conv Q DQ Conv Conv Q DQ Add"),
        ("c = Conv(x, v) a = Sigmoid(c) e = Exp(c) y = Add(a, e)", "Q DQ Conv Sigmoid Exp Add"),
        ("c = Conv(x, v) p = Pad(c, ends) t = Tile(p, ones) y = Conv(t, w)", "Q DQ Conv Q DQ Pad Tile Conv"),
        ("c = Conv(x, v) p = MaxPool<kernel_shape=[2,2]>(c) y = Conv(p, v)", "Q DQ Conv Q DQ MaxPool Conv"),
        ("c = Conv(x, v) p = GlobalAveragePool(c) y = Conv(p, v)", "Q DQ Conv Q DQ GlobalAveragePool Q DQ Conv"),
        ("c = Conv(x, v) y = GlobalAveragePool(c)", "Q DQ Conv GlobalAveragePool"),
        ("y = ConvTranspose<strides=[2,2]>(x, u)", "Q DQ ConvTranspose"),
    ],
)
def test_pairs_stand_at_what_enters_a_fused_kernel_and_nowhere_inside(nodes, expected):
    held = {"ends": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "ones": np.ones(4, np.int64)}
    assert chain(quantized(nodes, **held)) == expected.split()


def test_all_zero_points_are_0_and_all_codes_are_int8_also_behind_a_relu():
    qdq = quantized("c = Conv(x, v) r = Relu(c) y = Conv(r, v)")
    points = [array(qdq, i.name) for i in qdq.graph.initializer if i.name.endswith("_zero_point")]
    assert {(point.dtype.name, bool(point.any())) for point in points} == {("int8", False)}
    largest = max(np.abs(batch).max() for batch in batches(qdq, 1)[0].values())
    assert float(array(qdq, "x_scale")) == pytest.approx(largest / 127, rel=0.2)


def test_biases_stay_float_without_a_pair():
    folded = fold(quantized("y = Conv(x, w, b)"))
    assert node(folded, "Conv").input[2] == "b"
    assert {i.data_type for i in folded.graph.initializer} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT8}


def test_weights_have_a_scale_per_channel_on_the_parsers_axis_and_one_for_transposed_convolutions():
    nodes = "c = Conv(x, v) t = ConvTranspose<strides=[2,2]>(c, u) f = Flatten(t) y = Gemm<transB=1>(f, g)"
    qdq = quantized(nodes, "(float[2,16,2,2] x) => (float[2,N] y)", g=r(32, 256))
    axes = {n.output[0]: n.attribute[0].i for n in qdq.graph.node if n.op_type == "DequantizeLinear" and n.attribute}
    assert axes == {"v_dq": 0, "g_dq": 0}
    assert array(qdq, "u_scale").shape == ()
    proto = model(
        "(float[2,16,4,4] x) => (float[2,16,8,8] y) { y = ConvTranspose<strides=[2,2]>(x, u) }", u=WEIGHTS["u"]
    )
    rule = onnxqat.Override(type="ConvTranspose", weight_granularity="per_channel")
    asked = insert(proto, batches(proto, 1), Config(target="tensorrt", overrides=[rule]))
    assert array(asked, "u_scale").shape == (16,)


def test_inputs_of_a_concat_share_one_scale_also_after_training():
    nodes = "a = Conv(x, v) c = Conv<pads=[1,1,1,1]>(x, w) d = Concat<axis=2>(a, c) y = Conv(d, v)"
    qdq = quantized(nodes, "(float[2,16,8,8] x) => (float[2,16,16,8] y)")
    trainer = onnxqat.Trainer(qdq, loss="mse", optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.step({"x": r(2, 16, 8, 8, scale=1.0), "label": np.zeros((2, 16, 16, 8), np.float32)})
    trained = trainer.model()
    assert grids(trained)["a"] == grids(trained)["c"]
    scale, point = grids(trained)["a"]
    assert array(trained, scale) != array(qdq, scale)
    assert (array(trained, point).dtype, int(array(trained, point))) == (np.int8, 0)


@pytest.mark.parametrize(
    ("nodes", "operator", "reason"),
    [
        ("c = Conv(x, v) d = Conv(c, few) y = Conv(d, back)", "", ""),
        ("c = Conv(x, v) d = Conv(c, ten) y = Conv(d, six)", "Conv", "few, and faster in float16"),
        ("c = Conv(x, v) y = Conv<group=16>(c, pointwise)", "Conv", "16 channels in 16 groups, with a kernel of"),
        ("c = Conv(x, v) y = Conv<group=16>(c, deep)", "", ""),
        ("c = Conv(x, v) f = Flatten(c) y = Gemm(f, narrow)", "Gemm", "its number of columns is 10"),
        ("c = Conv(x, v) f = Flatten(c) y = MatMul(f, column)", "MatMul", "multiplies a matrix by a vector"),
        ("c = Conv(x, v) f = Flatten(c) g = Gemm(f, classes) y = Softmax(g)", "", ""),
        ("c = Conv(x, v) y = Exp(c)", "Exp", "tensorrt has no integer kernel for Exp"),
    ],
)
def test_layers_too_small_for_integers_stay_in_float_with_the_reason(nodes, operator, reason):
    more = {
        "narrow": r(1024, 10),
        "classes": r(1024, 600),
        "column": r(1024, 1),
        "pointwise": r(16, 1, 1, 1),
        "ten": r(10, 16, 1, 1),
    }
    header = "(float[2,16,8,8] x) => (float[2,N] y)" if "Flatten" in nodes else IMAGE
    found = reasons(quantized(nodes, header, **more, six=r(6, 10, 1, 1)))
    found.pop("Softmax", None)
    assert reason in found.get(operator, "")
    assert bool(found) == bool(operator)


ATTENTION = """(float[2,8,K] x) => (float[2,8,K] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) d = Mul(s, half) m = Add(d, mask) p = Softmax<axis=-1>(m)
    c = MatMul(p, v) y = MatMul(c, wo) }"""


@pytest.mark.parametrize(("size", "length", "expected"), [(32, 64, True), (48, 64, False), (32, 576, False)])
def test_four_inputs_of_attention_are_quantized_where_the_fused_kernel_takes_them(size, length, expected):
    weights = {key: r(size, size, seed=number) for number, key in enumerate(("wq", "wk", "wv", "wo"))}
    text = ATTENTION.replace("K]", f"{size}]").replace(",8,", f",{length},")
    proto = model(text, half=np.float32(0.5), mask=np.zeros((1, 1, length), np.float32), **weights)
    qdq = insert(proto, batches(proto, 1), Config(target="tensorrt"))
    assert ({"q", "k", "v", "p"} <= grids(qdq).keys()) == expected
    assert {"q", "k", "v", "p"}.isdisjoint(grids(qdq)) != expected


def test_weights_as_floats_with_a_pair_give_the_same_answers_to_the_bit():
    qdq = quantized("c = Conv<pads=[1,1,1,1]>(x, w, b) s = Add(c, x) y = Relu(s)")
    stored, floats, batch = fold(qdq), fold(qdq, weights="float"), batches(qdq, 1)[0]
    assert operators(floats)["QuantizeLinear"] == operators(stored)["QuantizeLinear"] + 1
    assert "Clip" not in operators(floats)
    np.testing.assert_array_equal(outputs(floats, batch), outputs(stored, batch))


@stock.needs_stock
def test_float16_model_has_no_float32_inside_and_keeps_its_inputs_and_outputs():
    nodes = "c = Conv<pads=[1,1,1,1]>(x, w, b) z = Resize(c, , sizes) s = Add(z, m) y = Relu(s)"
    qdq = quantized(nodes, sizes=np.array([1, 1, 2, 2], np.float32), m=np.full(1, -1e9, np.float32))
    half, batch = fold(qdq, float16=True), batches(qdq, 1)[0]
    assert {t.type.tensor_type.elem_type for t in (*half.graph.input, *half.graph.output)} == {onnx.TensorProto.FLOAT}
    (resize,) = [i for i in half.graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    assert (resize.name, half.opset_import[0].version) == ("sizes", 19)
    found = stock.executed(half, batch)[0][0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, outputs(qdq, batch)[0], atol=0.05)


@stock.needs_stock
def test_float16_model_reads_what_an_attribute_gives_its_type_through_a_cast():
    nodes = "c = Conv<pads=[1,1,1,1]>(x, w, b) h = Shape(c) z = ConstantOfShape<value=float[1] {2.0}>(h) y = Add(c, z)"
    qdq = quantized(nodes)
    half, batch = fold(qdq, float16=True), batches(qdq, 1)[0]
    np.testing.assert_allclose(stock.executed(half, batch)[0][0], outputs(qdq, batch)[0], atol=0.05)


def test_scale_too_small_for_float16_is_refused():
    qdq = quantized("y = Conv(x, w)")
    (scale,) = [i for i in qdq.graph.initializer if i.name == "x_scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(1e-9), "x_scale"))
    with pytest.raises(InputError, match="'x_scale' of 'x': 1e-09 is too small for float16"):
        fold(qdq, float16=True)


def test_weights_in_blocks_are_int4_behind_floats():
    proto = model("(float[2,8,128] x) => (float[2,8,32] y) { y = MatMul(x, g) }", g=r(128, 32))
    settings = {"weight_bits": 4, "weight_block_size": 64, "quantize_activations": False}
    folded = fold(insert(proto, batches(proto, 1), Config(target="tensorrt", **settings)))
    assert chain(folded) == ["MatMul"]
    assert [i.data_type for i in folded.graph.initializer if list(i.dims) == [128, 32]] == [onnx.TensorProto.INT4]


FLOAT8 = {"weight_type": "fp8", "activation_type": "fp8"}
WIDE = "(float[2,32,8,8] x) => (float[2,N] y)"
WIDE_BODY = """c = Conv<pads=[1,1,1,1]>(x, k, bias) s = Add(c, x) q = Relu(s) few = Conv(q, down) back = Conv(few, up)
    t = Conv<pads=[3,3,3,3]>(back, large) f = Flatten(t) y = Gemm<transB=1>(f, head)"""
WIDE_WEIGHTS = {
    "k": r(32, 32, 3, 3),
    "bias": r(32),
    "down": r(16, 32, 1, 1),
    "up": r(32, 16, 1, 1),
    "large": r(32, 32, 7, 7),
    "head": r(32, 2048),
}


def test_fp8_model_has_pairs_of_e4m3_with_trained_scales_where_nvidias_quantizer_has_them():
    proto = model(f"{WIDE} {{ {WIDE_BODY} }}", **WIDE_WEIGHTS)
    batch = batches(proto, 1)[0]
    qdq = insert(proto, [batch], Config(target="tensorrt", **FLOAT8))
    assert qdq.opset_import[0].version == 19
    assert grids(qdq).keys() == {"x", "k", "t", "head"}  # the same pair serves Conv and short cut
    assert {array(qdq, point).dtype.name for _, point in grids(qdq).values()} == {"float8_e4m3fn"}
    assert float(array(qdq, "x_scale")) == pytest.approx(np.abs(batch["x"]).max() / 448)
    assert array(qdq, "k_scale").shape == (32,)
    assert [one.fact for one in onnxqat.check(qdq)] == [
        "its 32 channels in and 16 out are few, and faster in float16 than in fp8",
        "its 16 channels in and 32 out are few, and faster in float16 than in fp8",
        "its window has 49 elements, and fp8 kernels take 32",
    ]
    trainer = onnxqat.Trainer(qdq, loss="mse", optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.step(batch | {"label": np.zeros((2, 32), np.float32)})
    trained = trainer.model()
    moved = [name for name, _ in grids(trained).values() if (array(trained, name) != array(qdq, name)).any()]
    assert len(moved) == 4
    folded = fold(trained)
    assert {i.name for i in folded.graph.initializer if i.data_type == onnx.TensorProto.FLOAT8E4M3FN and i.dims} == {
        "k_quantized",
        "head_quantized",
        "k_zero_point",
        "head_zero_point",
    }
    assert {one.kind for one in onnxqat.check(folded)} == {"float"}
    np.testing.assert_array_equal(outputs(folded, batch), outputs(trained, batch))
    again = onnxqat.Trainer(folded, loss="mse")  # stored codes get their float form back
    np.testing.assert_array_equal(outputs(fold(again.model()), batch), outputs(folded, batch))


def test_fp8_resnet_is_as_accurate_as_in_float_and_keeps_its_rectifiers_in_the_runtime():
    """ONNX Runtime drops a Relu in front of E4M3, unless it is kept from that."""
    float_model = fashion_mnist.SLICE.with_name("resnet20.onnx")
    qdq = insert(float_model, list(fashion_mnist.calibration())[:1], Config(target="tensorrt", **FLOAT8))
    report = onnxqat.verify(qdq, fold(qdq), list(fashion_mnist.test())[:2])
    assert (report.stands_for, report.agreement, report.integer_count()) == ("TensorRT", 1.0, (12, 22))
    assert report.deployed > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_type": "fp8"}, "weight_type is fp8 and activation_type int, and kernels multiply fp8 by fp8 alone"),
        (FLOAT8 | {"weight_bits": 4}, "a type of codes is fp8, which has 8 bits, and others are asked for"),
        (FLOAT8 | {"target": "qnn"}, "a type of codes is fp8, and QNN has no kernels for that"),
        ({"activation_bits": 4}, "activation_bits is 4, and TensorRT runs activations of 8 bits"),
        ({"activation_symmetric": False}, "activation_symmetric is false, and TensorRT takes zero points of 0 alone"),
        ({"weight_symmetric": False}, "weight_symmetric is false, and TensorRT takes zero points of 0 alone"),
        ({"activation_granularity": "per_channel"}, "TensorRT takes one scale per tensor"),
        (
            {"weight_bits": 4, "weight_block_size": 32},
            "weight_block_size is 32, and TensorRT takes blocks of 64 or 128",
        ),
    ],
)
def test_settings_that_tensorrt_does_not_take_are_refused_before_calibration(settings, message):
    with pytest.raises(InputError, match=message):
        insert(model(f"{IMAGE} {{ y = Conv(x, w) }}", w=WEIGHTS["w"]), [], Config(**{"target": "tensorrt"} | settings))


def test_value_of_nine_axes_is_refused_by_name():
    proto = model(
        "(float[2,16,8,8] x) => (float[A,B,C,D,E,F,G,H,I] y) { c = Conv(x, v) y = Unsqueeze(c, five) }",
        v=WEIGHTS["v"],
        five=np.arange(5),
    )
    with pytest.raises(UnsupportedModelError, match=r"Unsqueeze.*: has 9 axes at 'y', and TensorRT takes 8"):
        insert(proto, [], Config(target="tensorrt"))


def test_resnet_has_a_pair_at_the_skip_side_alone_and_verify_says_that_it_simulates():
    float_model = fashion_mnist.SLICE.with_name("resnet20.onnx")
    qdq = insert(float_model, list(fashion_mnist.calibration())[:1], Config(target="tensorrt"))
    batch = {key: values[:8] for key, values in next(iter(fashion_mnist.test())).items()}
    report = onnxqat.verify(qdq, fold(qdq), [batch])
    assert (report.stands_for, report.agreement, report.outputs[0].largest) == ("TensorRT", 1.0, 0.0)
    assert report.integer_count() == (21, 22)
    dequantized = {n.output[0] for n in qdq.graph.node if n.op_type == "DequantizeLinear"}
    adds = [[name in dequantized for name in n.input] for n in qdq.graph.node if n.op_type == "Add"]
    assert [sum(sides) for sides in adds] == [1] * 9
