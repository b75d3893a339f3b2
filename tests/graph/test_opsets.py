import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxqat.errors import InputError
from onnxqat.graph import io, upgrade
from onnxqat.graph.opsets import upgraded
from onnxqat.insertion import insert
from onnxqat.runtime import Inference
from onnxqat.runtime.conversion import converted
from tests.models import batches, model, operators, outputs, random
from tools.gradient_coverage import node_cases

LOWERED = {
    "conv": (22, "(float[N,3,6,6] x) => (float[N,4,A,B] y) { a = Conv(x, k) y = Relu(a) }", {"k": random(4, 3, 3, 3)}),
    "hard swish": (22, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = HardSwish(a) }", {}),
    "global max": (22, "(float[N,3,6,6] x) => (float[N,3,1,1] y) { y = GlobalMaxPool(x) }", {}),
    "movement": (25, "(float[N,8] x) => (float[8,N] y) { a = MatMul(x, w) y = Transpose(a) }", {}),
    "swish": (24, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Swish<alpha=1.5>(a) }", {}),
    "swish of newest": (25, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Swish(a) }", {}),
    "normalization": (
        23,
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = RMSNormalization<axis=-1>(a, g) }",
        {"g": random(8)},
    ),
    "attention": (
        23,
        """(float[2,5,8] x) => (float[2,5,8] y) { q = MatMul(x, w)
        y = Attention<q_num_heads=2, kv_num_heads=2>(q, x, x) }""",
        {},
    ),
}


@pytest.mark.parametrize(("opset", "body", "weights"), LOWERED.values(), ids=LOWERED)
def test_newer_model_is_lowered_and_answers_alike(opset, body, weights, caplog):
    proto = model(body, opset=opset, ir_version=10, **(weights | {"w": random(8, 8)} if "(x, w)" in body else weights))
    lowered = io.to_proto(io.load(proto))
    assert lowered.opset_import[0].version == 21
    assert f"lowered from opset {opset} to 21" in caplog.text
    onnx.checker.check_model(lowered, full_check=True)
    (batch,) = batches(proto, 1)
    (expected,) = ReferenceEvaluator(proto).run(None, batch)
    np.testing.assert_allclose(outputs(lowered, batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_operators_that_have_no_older_form_are_all_named():
    body = """(float[4,2,8] x, int64[4] i, float[4,2,3] u) => (float[4,2,8] y, int32[4,2,8] z) {
        a = TensorScatter(x, u, i) y = TensorScatter(a, u, i) z = BitCast<to=6>(y) }"""
    proto = model(body, opset=26, ir_version=10)
    with pytest.raises(
        InputError, match=r"opset 26 cannot be lowered to 21, because of BitCast \(1\), TensorScatter \(2\)"
    ):
        io.load(proto)


def test_attribute_that_the_older_form_lacks_is_refused():
    proto = model(
        '(float[N] x) => (float8e8m0[N] y) { y = Cast<to=24, round_mode="nearest">(x) }', opset=24, ir_version=10
    )
    with pytest.raises(InputError, match=r"because of Cast \(1\)"):
        io.load(proto)


IMAGE = "(float[2,4,8,8] x) => (float[A,B,C,D] y)"
UPGRADED = {
    "batch normalization": (7, "n = BatchNormalization(x, g, g, g, v) y = Relu(n)"),
    "broadcasting add": (7, "y = Add(x, c)"),
    "dropout": (7, "d = Dropout<ratio=0.3>(x) y = Relu(d)"),
    "dropout with a mask": (10, "y, mask = Dropout<ratio=0.3>(x)"),
    "upsample by attribute": (7, 'y = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]>(x)'),
    "upsample by input": (9, 'y = Upsample<mode="nearest">(x, s)'),
    "resize": (10, 'y = Resize<mode="nearest">(x, s)'),
    "slice by attributes": (9, "y = Slice<axes=[2], starts=[1], ends=[5]>(x)"),
    "pad by attributes": (10, 'y = Pad<mode="constant", pads=[0,0,1,1,0,0,1,1], value=0.0>(x)'),
    "clip by attributes": (10, "y = Clip<min=-0.5, max=0.5>(x)"),
    "squeeze by attributes": (11, "a = Unsqueeze<axes=[0]>(x) y = Squeeze<axes=[0]>(a)"),
    "split by attributes": (11, "y, z = Split<axis=1, split=[1, 3]>(x)"),
    "sum by attributes": (11, "y = ReduceSum<axes=[1], keepdims=1>(x)"),
    "softmax over all axes behind": (11, "y = Softmax<axis=1>(x)"),
    "softmax over one axis": (11, "r = Reshape(x, back) y = Softmax<axis=1>(r)"),
    "softmax over the last axis": (9, "y = Softmax<axis=3>(x)"),
    "softmax over a negative axis": (11, "y = Softmax<axis=-2>(x)"),
    "log softmax": (11, "y = LogSoftmax<axis=2>(x)"),
    "hardmax": (7, "y = Hardmax(x)"),
    "hardmax over all": (11, "y = Hardmax<axis=0>(x)"),
    "upsample between pixels": (7, 'y = Upsample<mode="linear", scales=[1.0, 1.0, 2.0, 2.0]>(x)'),
    "upsample between pixels by input": (9, 'y = Upsample<mode="linear">(x, s)'),
    "resize between pixels": (10, 'y = Resize<mode="linear">(x, s)'),
    "resize to less": (10, 'y = Resize<mode="linear">(x, less)'),
    "resize to the nearest of less": (10, 'y = Resize<mode="nearest">(x, less)'),
    "resize to the nearest of more": (10, 'y = Resize<mode="nearest">(x, odd)'),
    "upsample to the nearest": (9, 'y = Upsample<mode="nearest">(x, odd)'),
    "resize without scales": (11, 'y = Resize<mode="linear">(x, none, none, sizes)'),
    "largest by attribute": (9, "y, i = TopK<axis=3, k=3>(x)"),
    "largest by input": (10, "y, i = TopK(x, three)"),
    "clip below": (7, "y = Clip<min=0.1>(x)"),
    "pad with a value": (7, "y = Pad<pads=[0,0,1,1,0,0,1,1], value=-2.0>(x)"),
    "scatter": (10, "y = Scatter<axis=1>(x, where, c4)"),
    "inside a branch": (
        9,
        "on = Constant<value=bool {1}>() y = If(on) <then_branch = t () => (float[A,B,C,D] p) "
        '{ u = Softmax<axis=1>(x) k = Clip<min=0.001>(u) p = Upsample<mode="linear">(k, s) }, '
        'else_branch = e () => (float[A,B,C,D] q) { q = Upsample<mode="nearest">(x, s) }>',
    ),
    "average pool": (7, "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "max pool": (7, "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "flatten": (8, "f = Flatten(x) y = Reshape(f, back)"),
    "transposed convolution": (8, "y = ConvTranspose(x, t)"),
}
OLD_WEIGHTS = {
    "g": random(4),
    "v": np.abs(random(4)) + np.float32(1),
    "c": random(4, 1, 1),
    "s": np.array([1, 1, 2, 2], np.float32),
    "back": np.array([2, 4, 8, 8]),
    "t": random(4, 4, 2, 2),
    "w": random(4, 4, 3, 3),
    "less": np.array([1, 1, 0.6, 0.6], np.float32),
    "odd": np.array([1, 1, 1.3, 1.3], np.float32),
    "none": np.zeros(0, np.float32),
    "sizes": np.array([2, 4, 12, 12]),
    "three": np.array([3]),
    "where": np.array([[[[1]]]]),
    "c4": random(1, 1, 1, 1),
}


@pytest.mark.parametrize(("opset", "nodes"), UPGRADED.values(), ids=UPGRADED)
def test_older_model_is_upgraded_and_answers_alike(opset, nodes):
    used = {name: array for name, array in OLD_WEIGHTS.items() if f", {name}" in nodes}
    proto = model(f"{IMAGE} {{ {nodes} }}", opset=opset, **used)
    newer = io.to_proto(upgraded(io.load(proto, oldest_opset=7), 17))
    assert newer.opset_import[0].version == 17
    (batch,) = batches(proto, 1)
    np.testing.assert_allclose(outputs(newer, batch)[0], outputs(proto, batch)[0], rtol=1e-5, atol=1e-6)


NEWEST = {
    **{
        f"Reduce{kind}": (17, f"y = Reduce{kind}<axes=[1], keepdims=1>(x)")
        for kind in ("Mean", "Max", "L2", "LogSumExp")
    },
    "reduction over all axes": (13, "y = ReduceMean<keepdims=1>(x)"),
    "equal parts": (13, "y, z = Split<axis=1>(x)"),
    "samples": (16, 'y = GridSample<mode="bilinear">(x, places)'),
    "samples of cubic": (16, 'y = GridSample<mode="bicubic">(x, places)'),
}


@pytest.mark.parametrize(("opset", "nodes"), NEWEST.values(), ids=NEWEST)
def test_model_is_upgraded_to_the_newest_opset_and_answers_alike(opset, nodes):
    places = {"places": random(2, 3, 3, 2)} if "places" in nodes else {}
    proto = model(f"{IMAGE} {{ {nodes} }}", opset=opset, **places)
    newer = io.to_proto(upgraded(io.load(proto), 21))
    (batch,) = batches(proto, 1)
    np.testing.assert_allclose(outputs(newer, batch)[0], outputs(proto, batch)[0], rtol=1e-5, atol=1e-6)


#: Operators whose meaning or inputs changed: their own node tests, in every older form that the checker takes them in.
CHANGED = {name: versions for name, versions in upgrade.ADAPTERS.items() if versions and name in node_cases()}


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12])
def test_older_forms_of_node_tests_answer_alike(opset):
    compared = 0
    for case in (one for name in CHANGED for one in node_cases()[name]):
        proto = onnx.ModelProto.FromString(case.model.SerializeToString())
        proto.ir_version, proto.opset_import[0].version = 8, opset
        try:
            onnx.checker.check_model(proto)
            old = io.load(proto, oldest_opset=7)
            want = Inference(old)(case.feeds)
        except Exception:  # it has no such older form
            continue
        got = Inference(upgraded(old, 17))(case.feeds)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=case.name)
        compared += 1
    assert compared >= (3 if opset < 11 else 20)


def test_conversion_that_changes_the_answers_is_refused_by_node(monkeypatch):
    monkeypatch.setitem(upgrade.ADAPTERS, "Softmax", ())
    proto = model("(float[N,3,4] x) => (float[N,3,4] y) { a = Exp(x) s = Softmax(a) y = Neg(s) }", opset=11)
    with pytest.raises(InputError, match=r"Softmax 's' computes something else in opset 17"):
        converted(io.load(proto, oldest_opset=7))


def test_conversion_is_held_to_its_answers_on_the_calibration_data_too(monkeypatch):
    monkeypatch.setitem(upgrade.ADAPTERS, "Softmax", ())
    # made-up data does not take the branch with the operator that differs
    proto = model(
        """(float[N,2,4] x) => (float[N,2,3] y) { m = ReduceMax<keepdims=0>(x) c = Greater(m, h)
        s = If(c) <then_branch = t () => (float[N,2,4] p) { p = Softmax(x) },
        else_branch = e () => (float[N,2,4] q) { q = Neg(x) }> y = MatMul(s, w) }""",
        opset=11, h=np.float32(50), w=random(4, 3),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"If 's' computes something else in opset 17"):
        insert(proto, [random(2, 2, 4, scale=100)])


def test_node_that_differs_in_the_branch_not_taken_at_first_is_found(monkeypatch):
    monkeypatch.setitem(upgrade.ADAPTERS, "Softmax", ())
    proto = model(
        """(float[2,3,4] x, bool c) => (float[2,3,4] y) { y = If(c) <then_branch = t () => (float[2,3,4] p) { p = Neg(x) },
        else_branch = e () => (float[2,3,4] q) { q = Softmax(x) }> }""",
        opset=11,
    )
    with pytest.raises(InputError, match=r"If 'y' computes something else"):
        converted(io.load(proto, oldest_opset=7))


def test_normalization_that_updates_its_statistics_is_refused():
    nodes = "y, m, q, n, r = BatchNormalization(x, g, g, g, v)"
    proto = model(f"{IMAGE} {{ {nodes} }}", opset=9, g=OLD_WEIGHTS["g"], v=OLD_WEIGHTS["v"])
    with pytest.raises(InputError, match="BatchNormalization 'y' updates its statistics"):
        upgraded(io.load(proto, oldest_opset=7), 17)


def test_nearest_samples_of_one_axis_that_shrinks_and_one_that_grows_are_refused():
    scales = np.array([1, 1, 0.5, 1.5], np.float32)
    proto = model('(float[1,1,4,4] x) => (float[1,1,2,6] y) { y = Resize<mode="nearest">(x, s) }', opset=10, s=scales)
    with pytest.raises(InputError, match="Resize 'y' takes the nearest sample while it shrinks one axis"):
        upgraded(io.load(proto, oldest_opset=7), 17)


def test_names_and_listed_weights_survive_an_upgrade():
    proto = model(
        "(float[N,4,8,8] x) => (float[N,4,6,6] y) { a = Conv(x, w) y = Relu(a) }", opset=8, w=OLD_WEIGHTS["w"]
    )
    proto.ir_version = 3  # which lists its initializers among the inputs
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 3, 3]))
    proto.graph.node[0].name, proto.graph.node[1].name = "stem", "act"
    newer = upgraded(io.load(proto, oldest_opset=7), 17)
    assert [node.name for node in newer.graph] == ["stem", "act"]
    assert [value.name for value in newer.graph.inputs] == ["x", "w"]
    assert np.array_equal(newer.graph.initializers["w"].const_value.numpy(), OLD_WEIGHTS["w"])
    assert operators(io.to_proto(newer)) == {"Conv": 1, "Relu": 1}


def test_operator_without_a_newer_form_is_named():
    scan = "Scan<num_scan_inputs=1, body=g(float[8] i) => (float[8] o) { o = Relu(i) }>(n, x)"
    proto = model(f"(float[N,M,8] x, int64[N] n) => (float[N,M,8] y) {{ y = {scan} }}", opset=8)
    with pytest.raises(InputError, match="opset 8 cannot be converted to 17: Scan 'y' runs over batches"):
        upgraded(io.load(proto, oldest_opset=7), 17)
