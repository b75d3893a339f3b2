import numpy as np
import pytest
import torch

from onnxqat import gradients
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

A, B = normal(3, 4, 5), normal(4, 1, seed=1)
POSITIVE = np.abs(A) + 0.1


@pytest.mark.parametrize(
    ("x", "b"),
    [(POSITIVE, B), (POSITIVE[0], A), (A, np.float32(2)), (A, np.float32(3)), (POSITIVE, np.float32(0.5))],
    ids=["broadcast exponent", "broadcast base", "square", "cube", "root"],
)
@pytest.mark.parametrize("wrt", [["x"], ["b"], ["x", "b"]], ids=" ".join)
def test_power(x, b, wrt):
    if "b" in wrt and x is A:
        x = POSITIVE
    shapes = [",".join(map(str, np.shape(v))) for v in (x, b)]
    proto = model(f"(float[{shapes[0]}] x, float[{shapes[1]}] b) => (float[p,q,r] y) {{ y = Pow (x, b) }}")
    assert_matches_torch(proto, {"x": x, "b": np.asarray(b)}, lambda x, b: torch.pow(x, b), wrt)


def test_power_of_zero():
    proto = model("(float[3] x, float[3] b) => (float[p] y) { y = Pow (x, b) }")
    feeds = {"x": np.zeros(3, np.float32), "b": np.array([0, 1, 2], np.float32)}
    assert_matches_torch(proto, feeds, lambda x, b: torch.pow(x, b), ["x"])


@pytest.mark.parametrize("bounds", ["low", "high", "low high"])
def test_clip_and_its_bounds(bounds):
    names = [name if name in bounds.split() else "" for name in ("low", "high")]
    inputs = ", ".join(f"float {name}" for name in names if name)
    proto = model(f"(float[A,B,C] x, {inputs}) => (float[p,q,r] y) {{ y = Clip (x, {', '.join(names).rstrip(', ')}) }}")
    values = {"low": np.array(-0.3, np.float32), "high": np.array(0.5, np.float32)}
    feeds = {"x": A} | {name: values[name] for name in bounds.split()}

    def expected(x, low=None, high=None):
        x = x if low is None else torch.maximum(x, low)
        return x if high is None else torch.minimum(x, high)

    assert_matches_torch(proto, feeds, expected)


@pytest.mark.parametrize(
    ("a", "b"),
    [((5,), (5,)), ((4,), (3, 4, 5)), ((3, 5, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2)), ((3, 4), (4, 5))],
    ids=str,
)
def test_matrix_product(a, b):
    shapes = [",".join(map(str, shape)) for shape in (a, b)]
    proto = model(f"(float[{shapes[0]}] a, float[{shapes[1]}] b) => (float[{rank(a, b)}] y) {{ y = MatMul (a, b) }}")
    assert_matches_torch(proto, {"a": normal(*a), "b": normal(*b, seed=1)}, lambda a, b: a @ b)


def rank(a, b):
    return ",".join("pqrs"[: np.matmul(np.zeros(a), np.zeros(b)).ndim])


@pytest.mark.parametrize(("operator", "function"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_extrema_of_three_with_broadcasting(operator, function):
    text = "(float[3,4,5] a, float[4,1] b, float[5] c) => (float[p,q,r] y)"
    proto = model(f"{text} {{ y = {operator} (a, b, c) }}")
    feeds = {"a": A, "b": B, "c": normal(5, seed=2)}
    assert_matches_torch(proto, feeds, lambda a, b, c: function(function(a, b), c))


@pytest.mark.parametrize("shapes", [("3,4,5", "3,4,5", "3,4,5"), ("4,1", "3,4,5", "5"), ("3,1,1", "1", "4,5")])
def test_where_with_broadcasting(shapes):
    dims = [tuple(map(int, shape.split(","))) for shape in shapes]
    text = f"(bool[{shapes[0]}] c, float[{shapes[1]}] a, float[{shapes[2]}] b) => (float[p,q,r] y)"
    feeds = {"c": normal(*dims[0]) > 0, "a": normal(*dims[1], seed=1), "b": normal(*dims[2], seed=2)}
    proto = model(f"{text} {{ y = Where (c, a, b) }}")
    assert_matches_torch(proto, feeds, lambda c, a, b: torch.where(c, a, b), ["a", "b"])


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
def test_binary_operators_with_broadcasting(operator):
    proto = model(f"(float[A,4,C] a, float[4,1] b) => (float[p,q,r] y) {{ y = {operator} (a, b) }}")
    function = getattr(torch, operator.lower())
    assert_matches_torch(proto, {"a": A, "b": np.abs(B) + 1}, lambda a, b: function(a, b))


def test_expand_and_tile():
    body = """{
        s = Constant <value_ints=[3,1,5]> ()
        e = Expand (x, s)
        t = Constant <value_ints=[1,2,2]> ()
        y = Tile (e, t)
    }"""
    proto = model(f"(float[4,1] x) => (float[p,q,r] y) {body}")
    assert_matches_torch(proto, {"x": B}, lambda x: x.expand(3, 4, 5).repeat(1, 2, 2))


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_along_one_axis_or_all_from_it(opset, operator, axis):
    proto = model(f"(float[3,4,5] x) => (float[p,q,r] y) {{ y = {operator} <axis={axis}> (x) }}", opset)
    function = getattr(torch.nn.functional, "softmax" if operator == "Softmax" else "log_softmax")

    def expected(x):
        return function(x, axis) if opset == 13 else function(x.flatten(axis), axis).reshape(x.shape)

    assert_matches_torch(proto, {"x": A}, expected)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5])
def test_dropout_keeps_the_gradient_of_what_it_keeps(ratio):
    proto = model(
        "(float[100,20] x, float r) => (float[p,q] y) { t = Constant <value=bool {1}> () y = Dropout <seed=3> (x, r, t) }"
    )
    feeds = {"x": normal(100, 20) + 5, "r": np.array(ratio, np.float32)}
    outputs, found = gradients(proto, feeds, ["x"])
    np.testing.assert_allclose(found["x"], outputs["y"] / feeds["x"], rtol=1e-5)
    assert (outputs["y"] == 0).mean() == pytest.approx(ratio, abs=0.05)


@pytest.mark.parametrize("outputs", ["y", "y, m"])
def test_dropout_for_inference_is_the_identity(outputs):
    declared = "float[p,q] y" + (", bool[p,q] m" if "m" in outputs else "")
    proto = model(f"(float[3,4] x) => ({declared}) {{ {outputs} = Dropout (x) }}")
    found = gradients(proto, {"x": A[:, :, 0]}, ["x"])
    np.testing.assert_array_equal(found[1]["x"], np.ones((3, 4)))
    np.testing.assert_array_equal(found[0]["y"], A[:, :, 0])


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("c", [(), (1,), (5,), (3, 1), (3, 5)], ids=str)
def test_general_matrix_product(beta, c):
    dims = ",".join(map(str, c))
    text = f"(float[4,3] a, float[5,4] b, float[{dims}] c) => (float[p,q] y)"
    proto = model(f"{text} {{ y = Gemm <alpha=0.7, beta={beta}, transA=1, transB=1> (a, b, c) }}")
    feeds = {"a": normal(4, 3), "b": normal(5, 4, seed=1), "c": normal(*c, seed=2)}
    assert_matches_torch(proto, feeds, lambda a, b, c: 0.7 * a.T @ b.T + beta * c)
