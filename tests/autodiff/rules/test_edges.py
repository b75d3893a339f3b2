"""Gradients at the edge of a domain and at the ends of float32 are finite. Quantized values lie there often."""

import numpy as np
import pytest
import torch

from onnxqat import gradients
from onnxqat.autodiff.rules import activations, arithmetic, elementwise, reductions
from tests.autodiff.rules.against_torch import assert_matches_torch, model

MOST, LEAST = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
_HALF = [0, 1, 0.5, 2, LEAST, 1e-40, 1e-30, 1e-20, 1e20, MOST, 88, 100, 1e4, np.pi / 2, np.inf]
POINTS = np.array([sign * number for number in _HALF for sign in (1, -1)], np.float32)
EXPONENTS = (0.0, 0.25, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0, -0.5, -1.0, -2.0)

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh Celu Clip Cos Cosh Elu Erf Exp HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax
    Mish Neg Reciprocal Relu Selu Shrink Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
"""
UNARY = _UNARY.split()
BINARY = ["Add", "Div", "Max", "Mean", "Min", "Mod<fmod=1>", "Mul", "Pow", "PRelu", "Sub", "Sum"]
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
REDUCTIONS = [f"Reduce{kind}" for kind in _REDUCTIONS.split()]
WITHIN = {  # operators over a row, which must not be infinite
    "LpNormalization<p=1>": 17,
    "LpNormalization<p=2>": 17,
    "MeanVarianceNormalization<axes=[1]>": 17,
    "GlobalLpPool<p=2>": 17,
    "GlobalLpPool<p=3>": 17,
    "LpPool<kernel_shape=[1,2],p=2>": 18,
    "LpPool<kernel_shape=[1,2],p=3>": 18,
    "LRN<size=3>": 17,
}


def assert_finite(proto, feeds):
    """A gradient is finite where the answer or what it is computed from is; it is asked for where the answer is."""
    (name,) = [output.name for output in proto.graph.output]
    with np.errstate(all="ignore"):
        answer = gradients(proto, feeds, list(feeds))[0][name]
        asked = np.isfinite(answer).astype(np.float32)
        found = gradients(proto, feeds, list(feeds), {name: asked})[1]
    assert asked.any()
    judged = np.isfinite(answer) | np.isfinite(list(feeds.values())).all(0)
    for which, gradient in found.items():
        wrong = ~np.isfinite(gradient) & judged
        assert not wrong.any(), f"{which}: {gradient[wrong]} at {[array[wrong] for array in feeds.values()]}"


@pytest.mark.parametrize("operator", UNARY)
def test_functions_of_one_number(operator):
    """The gradient that is asked for is 0 where the answer is not finite, as behind a Where, and stays 0."""
    shape = "float[1,N]" if "oftmax" in operator and "Log" not in operator else "float[N,1]"
    points = POINTS[np.isfinite(POINTS)] if "oftmax" in operator else POINTS
    proto = model(f"({shape} x) => ({shape} y) {{ y = {operator} (x) }}", opset=18)
    assert_finite(proto, {"x": points.reshape([1, -1] if shape == "float[1,N]" else [-1, 1])})


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu(form):
    proto = model(f'(float[N] x) => (float[N] y) {{ y = Gelu<approximate="{form}"> (x) }}', opset=20)
    assert_finite(proto, {"x": POINTS[np.isfinite(POINTS)]})


@pytest.mark.parametrize("operator", BINARY)
def test_functions_of_two_numbers(operator):
    a, b = (grid.reshape(-1) for grid in np.meshgrid(POINTS, POINTS))
    proto = model(f"(float[N] a, float[N] b) => (float[N] y) {{ y = {operator} (a, b) }}")
    assert_finite(proto, {"a": a, "b": b})


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("form", ["float", "float[1]"])
def test_powers_of_a_constant_exponent(exponent, form):
    constant = f"c = Constant<value = {form} {{{exponent}}}> ()"
    assert_finite(model(f"(float[N] x) => (float[N] y) {{ {constant} y = Pow (x, c) }}"), {"x": POINTS})


def rows():
    """All pairs of points, each in a row of three channels."""
    a, b = (grid.reshape(-1) for grid in np.meshgrid(POINTS, POINTS))
    return np.stack([a, b, a], axis=1)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions(operator):
    proto = model(f"(float[N,3] x, int64[1] axes) => (float[N,1] y) {{ y = {operator} (x, axes) }}", opset=18)
    answer = gradients(proto, {"x": rows(), "axes": np.array([1])}, ["x"])[0]["y"]
    kept = rows()[np.isfinite(answer[:, 0])]
    constant = "axes = Constant<value_ints = [1]> ()"
    assert_finite(
        model(f"(float[N,3] x) => (float[N,1] y) {{ {constant} y = {operator} (x, axes) }}", opset=18), {"x": kept}
    )


@pytest.mark.parametrize(("operator", "opset"), WITHIN.items(), ids=WITHIN)
def test_operators_over_a_row(operator, opset):
    pooled = operator.startswith(("Lp", "Global", "LRN")) and "Norm" not in operator
    shape = "float[N,3,L,M]" if pooled else "float[N,3]"
    proto = model(f"({shape} x) => ({shape.replace('L,M', 'P,Q')} y) {{ y = {operator} (x) }}", opset=opset)
    x = rows()[np.isfinite(rows()).all(1)]
    x = np.stack([x, x], axis=2)[:, :, None] if pooled else x
    answer = gradients(proto, {"x": x}, ["x"])[0]["y"]
    assert_finite(proto, {"x": x[np.isfinite(answer.reshape(len(x), -1)).all(1)]})


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax<axis=1> (x)",
        "l = LogSoftmax<axis=1> (x) z = Constant<value_float=-9.0> () y = Max (l, z)",
        "y = ReduceLogSumExp<axes=[1]> (x)",
        "y = ReduceMax<axes=[1]> (x)",
        "f = Unsqueeze (x, axes) p = GlobalMaxPool (f) y = Squeeze (p, axes)",
    ],
    ids=["softmax", "log softmax", "log sum exp", "maximum", "global maximum"],
)
def test_masks_of_minus_infinity(body):
    proto = model(f"(float[2,3] x) => (float[2,P] y) {{ axes = Constant<value_ints=[2]> () {body} }}")
    x = np.array([[1, -np.inf, 2], [-np.inf, -np.inf, 0]], np.float32)
    assert np.isfinite(gradients(proto, {"x": x}, ["x"])[1]["x"]).all()


def test_every_function_of_the_tables_is_tried():
    names = {name.partition("<")[0] for name in (*UNARY, *BINARY, *REDUCTIONS, *WITHIN)} | {"Gelu"}
    exact = {"MatMul", "Gemm", "Dropout", "Where"}  # linear, or choosing
    families = (activations, arithmetic, elementwise, reductions)
    functions = {name for family in families for name in family.RULES}
    assert functions - names - exact - {"Swish"} == set()  # ONNX Runtime has no Swish; it is written as Mul and Sigmoid


@pytest.mark.parametrize(
    ("body", "function", "x"),
    [
        ("y = ReduceL2<axes=[1]> (x)", lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), [[0, 0], [3, 4]]),
        ("n = ReduceL2<axes=[1]> (x) e = Constant<value_float=1e-12> () m = Max (n, e) y = Div (x, m)",
         lambda x: torch.nn.functional.normalize(x, dim=1), [[0, 0], [3, 4]]),
        ("t = Constant<value_float=0.0> () y = Pow (x, t)", lambda x: x**0.0, [[0, -1, 2]]),
        ("t = Constant<value_float=1.5> () y = Pow (x, t)", lambda x: x**1.5, [[0, 1, 2]]),
        ("y = Abs (x)", torch.abs, [[0, -1, 1]]),
        ("y = ReduceProd<axes=[1]> (x)", lambda x: x.prod(1, keepdim=True), [[0, 2, 3], [0, 0, 2]]),
        ("y = LogSoftmax<axis=1> (x)", lambda x: torch.log_softmax(x, 1), [[0, 1e4], [-1e4, 1e4]]),
        ("y = ReduceLogSumExp<axes=[1]> (x)", lambda x: torch.logsumexp(x, 1, keepdim=True), [[0, 1e4], [-100, 100]]),
        ("y = Softplus (x)", torch.nn.functional.softplus, [[0, 100, -100]]),
        ("y = Tanh (x)", torch.tanh, [[0, 1e4, -1e4]]),
    ],
    ids=["norm", "cosine similarity", "power 0", "power 1.5", "absolute", "product", "log softmax", "log sum exp",
         "softplus", "tanh"],
)  # fmt: skip
def test_where_torch_gives_a_finite_gradient_so_do_we(body, function, x):
    rank = len(np.shape(x))
    dims = ",".join("NMP"[:rank])
    proto = model(f"(float[{dims}] x) => (float[{','.join('pqr'[:rank])}] y) {{ {body} }}")
    assert_matches_torch(proto, {"x": np.array(x, np.float32)}, function)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Sqrt (x)", [0.25, 0.0]),
        ("r = Sqrt (x) y = Mul (r, r)", [1.0, 0.0]),
        ("t = Constant<value_float=0.5> () y = Pow (x, t)", [0.25, 0.0]),
        ("z = Constant<value_float=0.0> () c = Greater (x, z) r = Log (x) y = Where (c, r, z)", [0.25, 0.0]),
        ("z = Constant<value_float=-4.0> () r = Log (x) y = Max (r, z)", [0.25, 0.0]),
        ("z = Constant<value_float=0.0> () c = Greater (x, z) r = Reciprocal (x) y = Where (c, r, z)", [-1 / 16, 0.0]),
        ("z = Constant<value_float=0.0> () c = Greater (x, z) r = Div (x, x) y = Where (c, r, z)", [0.0, 0.0]),
        ("z = Constant<value_float=0.0> () n = Neg (x) c = Less (n, z) r = Sqrt (n) y = Where (c, z, x)", [0.0, 1.0]),
    ],
    ids=["root", "square of root", "power", "logarithm", "floor of logarithm", "reciprocal", "zero by zero", "no root"],
)
def test_a_gradient_is_zero_where_the_slope_has_no_bound(body, expected):
    proto = model(f"(float[N] x) => (float[N] y) {{ {body} }}")
    found = gradients(proto, {"x": np.array([4.0, 0.0], np.float32)}, ["x"])[1]["x"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
