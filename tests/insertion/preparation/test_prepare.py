import logging

import numpy as np
import onnx
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.insertion.preparation import prepare
from tests.insertion.cases import ALL, between, image
from tests.models import batches, model, operators, outputs, random

NORM = {
    "g": random(4, seed=5) + 1,
    "be": random(4, seed=6),
    "mu": random(4, seed=7),
    "va": np.abs(random(4, seed=8)) + 1,
}
NORM = {name: values.astype(np.float32) for name, values in NORM.items()}
NORMALIZE = "BatchNormalization({}, g, be, mu, va)"


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The prepared model, which is valid and answers as before."""
    result = io.to_proto(prepare(proto))
    onnx.checker.check_model(result, full_check=True)
    (batch,) = batches(proto, 1)
    for before, after in zip(outputs(proto, batch), outputs(result, batch), strict=True):
        # folded factors are rounded to float32 once more
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    return result


@pytest.mark.parametrize("proto", ALL.values(), ids=ALL)
def test_answers_are_unchanged(proto):
    prepared(proto)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("c = Conv(x, w, b) y = {}", {}),
        ("c = Conv(x, w) y = {}", {}),
        ("c = Conv<group=4>(x, dw) y = {}", {"dw": random(4, 1, 3, 3)}),
        ("c = Conv<group=2>(x, gw, b) y = {}", {"gw": random(4, 2, 3, 3)}),
        ("c = ConvTranspose(x, w, b) y = {}", {}),
        ("c = ConvTranspose<group=2>(x, gt, b) y = {}", {"gt": random(4, 2, 3, 3)}),
        ("c = ConvTranspose<group=4>(x, dt) y = {}", {"dt": random(4, 1, 3, 3)}),
    ],
    ids=["conv", "no bias", "depthwise", "grouped", "transposed", "grouped transposed", "depthwise transposed"],
)
def test_batch_normalization_is_folded(nodes, weights):
    result = prepared(image(nodes.format(NORMALIZE.format("c")), **NORM, **weights))
    assert set(operators(result)) <= {"Conv", "ConvTranspose"}
    assert len(result.graph.node) == 1


@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_normalization_is_folded_into_gemm(transposed):
    proto = model(
        f"(float[N,3] x) => (float[N,4] y) {{ c = Gemm<transB={transposed}>(x, w, b) y = {NORMALIZE.format('c')} }}",
        w=random(4, 3) if transposed else random(3, 4),
        b=random(4),
        **NORM,
    )
    assert list(operators(prepared(proto))) == ["Gemm"]


def test_batch_normalization_behind_a_shared_weight_changes_only_its_own_conv():
    result = prepared(image(f"c = Conv<pads=[1,1,1,1]>(x, w, b) n = {NORMALIZE.format('c')} y = Conv(n, w, b)", **NORM))
    first, second = result.graph.node
    assert first.input[1] != second.input[1]
    assert second.input[1:] == ["w", "b"]


def test_every_one_of_several_batch_normalizations_becomes_multiply_and_add():
    nodes = f"r = Relu(x) n = {NORMALIZE.format('r')} m = {NORMALIZE.format('n')} y = Conv(m, w, b)"
    assert [n.op_type for n in prepared(image(nodes, **NORM)).graph.node] == [
        "Relu",
        "Mul",
        "Add",
        "Mul",
        "Add",
        "Conv",
    ]


def test_relu_before_batch_normalization_becomes_multiply_and_add():
    result = prepared(image(f"c = Conv(x, w, b) r = Relu(c) y = {NORMALIZE.format('r')}", **NORM))
    assert [n.op_type for n in result.graph.node] == ["Conv", "Relu", "Mul", "Add"]


def test_conv_that_is_read_twice_keeps_its_batch_normalization_apart():
    result = prepared(image(f"c = Conv(x, w, b) n = {NORMALIZE.format('c')} y = Add(c, n)", **NORM))
    assert [n.op_type for n in result.graph.node] == ["Conv", "Mul", "Add", "Add"]


@pytest.mark.parametrize(
    "constant", [random(4, 1, 1), random(1, 4, 1, 1), np.float32(0.7), np.full((1, 1), 0.7, np.float32)]
)
@pytest.mark.parametrize("nodes", ["Mul(c, k)", "Mul(k, c)", "Add(c, k)", "Add(k, c)", "Sub(c, k)", "Div(c, k)"])
def test_arithmetic_by_a_constant_per_channel_is_folded(nodes, constant):
    assert list(operators(prepared(image(f"c = Conv(x, w, b) y = {nodes}", k=constant)))) == ["Conv"]


@pytest.mark.parametrize(
    ("nodes", "constant"),
    [
        ("Sub(k, c)", random(4, 1, 1)),
        ("Div(k, c)", random(4, 1, 1)),
        ("Mul(c, k)", random(6)),
        ("Add(c, k)", random(6, 1)),
    ],
    ids=["subtracted from", "divided by", "along the width", "along the height"],
)
def test_other_arithmetic_is_left_alone(nodes, constant):
    assert len(prepared(image(f"c = Conv(x, w, b) y = {nodes}", k=constant)).graph.node) == 2


@pytest.mark.parametrize("bias", [random(5), random(1, 5), random(5, 1), np.float32(1).reshape(1)], ids=str)
@pytest.mark.filterwarnings("ignore:elementwise")
def test_matmul_and_bias_become_gemm_only_if_the_bias_runs_along_the_columns(bias):
    proto = model("(float[5,3] x) => (float[5,5] y) { m = MatMul(x, w) y = Add(m, k) }", w=random(3, 5), k=bias)
    assert ("Gemm" in operators(prepared(proto))) == (bias.shape in {(5,), (1, 5)})


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("m = Max(a, lo) k = Min(m, hi)", "Clip"),
        ("m = Min(a, hi) k = Max(m, lo)", "Clip"),
        ("m = Relu(a) k = Min(m, hi)", "Clip"),
        ("m = Min(a, hi) k = Relu(m)", "Clip"),
        ("m = Relu(a) k = Clip(m, , hi)", "Clip"),
        ("k = Max(a, lo)", "Relu"),
    ],
)
def test_bounded_activations_take_one_form(nodes, expected):
    scalars = {"lo": np.float32(0), "hi": np.float32(0.5).reshape(1, 1)}
    scalars |= {"hi": np.float32(0.5)} if "Clip" in nodes else {}
    result = prepared(image(f"a = Conv(x, w, b) {nodes} y = Conv(k, v, d)", **scalars))
    assert [n.op_type for n in result.graph.node] == ["Conv", expected, "Conv"]


@pytest.mark.parametrize(("nodes", "bound"), [("Max(lo, a)", -np.inf), ("Min(a, lo)", np.inf)])
def test_a_bound_that_bounds_nothing_is_left_out(nodes, bound):
    result = prepared(image(f"a = Conv(x, w, b) k = {nodes} y = Conv(k, v, d)", lo=np.float32(bound)))
    assert [n.op_type for n in result.graph.node] == ["Conv", "Conv"]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_mean_over_space_becomes_global_pooling(opset, keepdims, last):
    axes = [1, 2] if last else [-2, -1]
    attribute, argument = (f"axes={axes}, ", "") if opset < 18 else ("", ", axes")
    proto = model(
        f"""(float[N,4,5,6] x) => (float[{"N,A,B,C" if keepdims else "N,A"}] y) {{ a = Conv(x, w)
        {"t = Transpose<perm=[0,2,3,1]>(a)" if last else "t = Relu(a)"}
        y = ReduceMean<{attribute}keepdims={keepdims}>(t{argument}) }}""",
        opset=opset,
        ir_version=10,
        w=random(4, 4, 1, 1),
        **({} if opset < 18 else {"axes": np.array(axes)}),
    )
    result = prepared(proto)
    assert "GlobalAveragePool" in operators(result)
    assert "ReduceMean" not in operators(result)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_every_opset_in_range_is_kept(opset):
    proto = image("a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, d)", opset=opset)
    proto.ir_version = 10
    assert prepared(proto).opset_import[0].version == opset


@pytest.mark.parametrize("opset", range(7, 13))
def test_older_opsets_are_converted_with_a_notice(opset, caplog):
    clip = "Clip<min=0.0, max=6.0>(a)" if opset < 11 else "Clip(a, lo, hi)"
    scalars = {} if opset < 11 else {"lo": np.float32(0), "hi": np.float32(6)}
    squeezed = "t = Unsqueeze<axes=[2]>(p) u = Squeeze<axes=[2]>(t)"
    nodes = f"a = Conv(x, w, b) r = {clip} p = Dropout(r) {squeezed} y = Conv(u, v, d)"
    proto = image(nodes, opset=opset, **scalars)
    with caplog.at_level(logging.WARNING):
        result = prepared(proto)
    assert result.opset_import[0].version == 17
    assert f"converted from opset {opset} to 17" in caplog.text


def test_opset_that_is_too_old_is_refused():
    with pytest.raises(InputError, match="opset 6 is"):
        prepare(model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", opset=6, ir_version=10, w=random(3, 2)))


def test_operator_that_cannot_be_converted_is_refused():
    proto = model("(float[N,4] x) => (float[N,4] y) { a = Relu(x) y = NoSuchOperator(a) }", opset=9)
    with pytest.raises(InputError, match="NoSuchOperator"):
        prepare(proto)


def test_output_of_unstated_shape_is_inferred():
    proto = image("y = Conv(x, w, b)")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.checker.check_model(io.to_proto(prepare(proto)))


@pytest.mark.parametrize(
    "nodes",
    [
        "f = Transpose<perm=[3,2,0,1]>(hwio)",
        "e = Cast<to=1>(half) f = Identity(e)",
        "f = Reshape(flat, shape)",
        "i = Identity(w) j = Identity(i) f = Identity(j)",
        "h = Constant<value_float=2.0>() f = Mul(w, h)",
    ],
    ids=["transpose", "cast", "reshape", "identities", "arithmetic"],
)
def test_weight_computed_from_constants_is_folded(nodes):
    weights = {
        "hwio": random(3, 3, 4, 4),
        "half": random(4, 4, 3, 3).astype(np.float16),
        "flat": random(144),
        "shape": np.array([4, 4, 3, 3]),
    }
    assert list(operators(prepared(image(f"{nodes} y = Conv(x, f, b)", **weights)))) == ["Conv"]


def test_dropout_and_identities_vanish_and_outputs_keep_their_names():
    result = prepared(image("a = Conv(x, w, b) i = Identity(a) p, mask = Dropout(i) y = Identity(p)"))
    assert list(operators(result)) == ["Conv"]
    assert result.graph.output[0].name == "y"


def test_flatten_of_any_batch_axis_becomes_reshape_and_other_axes_stay():
    shape = "(float[2,4,3,3] x) => (float[A,B] y, float[C,D] z)"
    result = prepared(model(f"{shape} {{ y = Flatten<axis=-3>(x) z = Flatten<axis=2>(x) }}"))
    assert [n.op_type for n in result.graph.node] == ["Reshape", "Flatten"]


def test_flatten_of_an_empty_tensor_stays():
    proto = model("(float[N,4,0] x) => (float[N,0] y) { y = Flatten(x) }")
    assert list(operators(io.to_proto(prepare(proto)))) == ["Flatten"]


@pytest.mark.parametrize(
    ("nodes", "merged"),
    [
        ("k = Pad(r, space)", True),
        ("k = Pad(r, space, zero)", True),
        ("k = Pad(r, space, one)", False),
        ("k = Pad(r, cropped)", False),
        ('k = Pad<mode="edge">(r, space)', False),
        ("q = Pad(r, channels) k = Slice(q, start, stop, axis)", False),
    ],
    ids=["zeros", "zero given", "ones", "negative", "edge", "channels"],
)
def test_padding_with_zeros_goes_into_the_convolution(nodes, merged):
    scalars = {"zero": np.float32(0), "one": np.float32(1)}
    amounts = {
        "space": [0, 0, 1, 1, 0, 0, 2, 1],
        "cropped": [0, 0, -1, 1, 0, 0, 2, 1],
        "channels": [0, 1, 0, 0, 0, 0, 0, 0],
    }
    slices = {"start": np.array([0]), "stop": np.array([4]), "axis": np.array([1])}
    proto = between(nodes, **scalars, **slices, **{name: np.array(pads) for name, pads in amounts.items()})
    assert ("Pad" not in operators(prepared(proto))) is merged


def test_padding_whose_amounts_pytorch_fills_up_with_zeros_goes_there_too():
    proto = image(
        """z = ConstantOfShape<value: tensor = int64[1] {0}>(four) a = Concat<axis=0>(z, ends) m = Reshape(a, halves)
        p = Cast<to=7>(m) q = Reshape(p, flat) k = Pad(x, q) y = Conv(k, w, b)""",
        four=np.array([4]), ends=np.array([0, 0, 2, 1]), halves=np.array([2, 4]), flat=np.array([-1]),
    )  # fmt: skip
    result = prepared(proto)
    assert operators(result) == {"Conv": 1}
    (pads,) = [list(a.ints) for a in result.graph.node[0].attribute if a.name == "pads"]
    assert pads == [0, 0, 2, 1]


def test_padding_that_pooling_reads_too_stays():
    assert "Pad" in operators(
        prepared(
            between(
                "p = Pad(r, pads) m = MaxPool<kernel_shape=[1,1]>(p) c = Conv(p, v, d) k = Add(m, c)",
                pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            )
        )
    )


def test_nodes_without_a_name_get_one_each():
    names = [n.name for n in prepared(between("t = Relu(r) k = Relu(t)")).graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_scalar_and_empty_tensors_pass():
    prepared(
        model("(float[N,3] x, float s) => (float[N,2] y, float t) { y = MatMul(x, w) t = Relu(s) }", w=random(3, 2))
    )


@pytest.mark.parametrize("lowest", [-np.inf, -1e9, -1e4])
def test_a_mask_is_no_bias(lowest):
    mask = np.array([0, 0, lowest, 0], np.float32)
    proto = model(
        "(float[N,8] x) => (float[N,4] y) { z = Gemm(x, w, b) y = Add(z, m) }", w=random(8, 4), b=random(4), m=mask
    )
    assert operators(prepared(proto)) == {"Gemm": 1, "Add": 1}


@pytest.mark.parametrize("opset", [10, 17])
def test_sequence_of_no_steps_is_left_as_it_is(opset):
    body = """(float[3,4] x, int64[3] n) => (float[3,4] y)
        { r = ReverseSequence<batch_axis=0, time_axis=1>(x, n) y = MatMul(r, w) }"""
    prepared = prepare(model(body, opset=opset, w=np.eye(4, dtype=np.float32)))
    x = random(3, 4)
    (got,) = outputs(io.to_proto(prepared), {"x": x, "n": np.array([0, 3, 4])})
    np.testing.assert_array_equal(got, np.stack([x[0], x[1][[2, 1, 0, 3]], x[2][::-1]]))
