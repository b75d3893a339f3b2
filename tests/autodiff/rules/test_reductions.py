import numpy as np
import pytest
import torch

from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

X = normal(3, 4, 5)
TORCH = {
    "ReduceL1": lambda x, **k: x.abs().sum(**k),
    "ReduceL2": lambda x, **k: (x**2).sum(**k).sqrt(),
    "ReduceSumSquare": lambda x, **k: (x**2).sum(**k),
    "ReduceLogSum": lambda x, **k: (x**2 + 1).sum(**k).log(),
    "ReduceLogSumExp": lambda x, **k: x.exp().sum(**k).log(),
    "ReduceMax": lambda x, **k: x.amax(**k),
    "ReduceMin": lambda x, **k: x.amin(**k),
    "ReduceMean": lambda x, **k: x.mean(**k),
    "ReduceSum": lambda x, **k: x.sum(**k),
}
POSITIVE = "o = Constant <value_float=1.0> () q = Mul (x, x) x1 = Add (q, o)"


def net(operator, opset, axes, keepdims):
    """`axes` as an attribute or as an input, as the operator set has it."""
    before, x = (POSITIVE, "x1") if operator == "ReduceLogSum" else ("", "x")
    as_input = opset >= 18 or operator == "ReduceSum"
    given = f"a = Constant <value_ints={axes}> ()" if as_input and axes else ""
    attributes = f"keepdims={keepdims}" + (f", axes={axes}" if axes and not as_input else "")
    arguments = f"{x}, a" if given else x
    rank = len(X.shape) if keepdims else len(X.shape) - len(axes) if axes else 0
    text = f"(float[A,B,C] x) => (float[{','.join('pqr'[:rank])}] y)"
    return model(f"{text} {{ {before} {given} y = {operator} <{attributes}> ({arguments}) }}", opset)


@pytest.mark.parametrize("operator", TORCH)
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(("axes", "keepdims"), [([1], 1), ([0, -1], 0), ([], 0), ([], 1)], ids=str)
def test_reduction(operator, opset, axes, keepdims):
    def expected(x):
        return TORCH[operator](x, dim=axes or [0, 1, 2], keepdim=bool(keepdims))

    assert_matches_torch(net(operator, opset, axes, keepdims), {"x": X}, expected)


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_product_with_zeros(zeros):
    x = X.copy()
    x[0, :zeros, 0] = 0
    proto = model("(float[3,4,5] x) => (float[p,q] y) { y = ReduceProd <axes=[1], keepdims=0> (x) }")
    assert_matches_torch(proto, {"x": x}, lambda x: torch.prod(x, 1))


def test_maxima_share_the_gradient():
    x = np.round(X)
    proto = model("(float[3,4,5] x) => (float[p,q] y) { y = ReduceMax <axes=[1], keepdims=0> (x) }")
    assert_matches_torch(proto, {"x": x}, lambda x: torch.amax(x, 1))


def test_the_norm_of_nothing_has_no_gradient():
    proto = model("(float[2,3] x) => (float[p] y) { y = ReduceL2 <axes=[1], keepdims=0> (x) }")
    x = np.array([[0, 0, 0], [3, 0, 4]], np.float32)
    assert_matches_torch(proto, {"x": x}, lambda x: torch.linalg.vector_norm(x, dim=1))
