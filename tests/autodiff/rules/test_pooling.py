import numpy as np
import pytest
import torch
from torch.nn import functional

from onnxqat import gradients
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal

FIXED, DYNAMIC, BATCHES = "2,3,9,7", "N,C,H,W", "N,3,9,7"
X = normal(2, 3, 9, 7)
SHAPES = pytest.mark.parametrize("shape", [FIXED, DYNAMIC, BATCHES], ids=["fixed", "dynamic", "dynamic batch"])


def net(shape, node, outputs="float[a,b,c,d] y"):
    """The pooling behind another node, so that its input is no graph input."""
    return model(f"(float[{shape}] x) => ({outputs}) {{ e = Exp (x) {node} }}", opset=19)


@SHAPES
@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ("kernel_shape=[3,3]", {"kernel_size": 3, "stride": 1}),
        ("kernel_shape=[3,2], strides=[2,1]", {"kernel_size": (3, 2), "stride": (2, 1)}),
        ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("kernel_shape=[2,2], dilations=[2,3]", {"kernel_size": 2, "stride": 1, "dilation": (2, 3)}),
        ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
        (
            "kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1",
            {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True},
        ),
        ("kernel_shape=[1,1], strides=[2,2], ceil_mode=1", {"kernel_size": 1, "stride": 2, "ceil_mode": True}),
    ],
    ids=["plain", "strides", "pads", "dilations", "ceil", "ceil and pads", "ceil beyond the data"],
)
def test_max_pool(shape, attributes, options):
    proto = net(shape, f"y = MaxPool <{attributes}> (e)")
    assert_matches_torch(proto, {"x": X}, lambda x: functional.max_pool2d(torch.exp(x), **options))


@pytest.mark.parametrize(
    ("y", "x", "function"),
    [
        ("float[a,b,c] y", normal(2, 3, 8), functional.max_pool1d),
        ("float[a,b,c,d,e] y", normal(2, 3, 6, 5, 4), functional.max_pool3d),
    ],
    ids=["1-D", "3-D"],
)
def test_max_pool_of_other_ranks(y, x, function):
    rank = x.ndim - 2
    node = f"y = MaxPool <kernel_shape={[2] * rank}, strides={[2] * rank}> (x)"
    assert_matches_torch(
        model(f"(float{list(x.shape)} x) => ({y}) {{ {node} }}"), {"x": x}, lambda x: function(x, 2, 2)
    )


def test_max_pool_whose_column_major_indices_are_used():
    proto = net(FIXED, "y, i = MaxPool <kernel_shape=[2,2], storage_order=1> (e)", "float[a,b,c,d] y, int64[a,b,c,d] i")
    cotangent = normal(2, 3, 8, 6, seed=4)
    outputs, found = gradients(proto, {"x": X}, ["x"], {"y": cotangent})
    x = torch.tensor(X, requires_grad=True)
    functional.max_pool2d(torch.exp(x), 2, 1).backward(torch.tensor(cotangent))
    np.testing.assert_allclose(found["x"], x.grad.numpy(), rtol=1e-5, atol=1e-6)
    assert outputs["i"].shape == (2, 3, 8, 6)


@SHAPES
@pytest.mark.parametrize(
    ("attributes", "options"),
    [
        ("kernel_shape=[3,3]", {"kernel_size": 3, "stride": 1}),
        ("kernel_shape=[3,2], strides=[2,1]", {"kernel_size": (3, 2), "stride": (2, 1)}),
        (
            "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
            {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        ),
        (
            "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1",
            {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": True},
        ),
        ("kernel_shape=[2,2], strides=[2,2], ceil_mode=1", {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    ],
    ids=["plain", "strides", "pads", "pads counted", "ceil"],
)
def test_average_pool(shape, attributes, options):
    proto = net(shape, f"y = AveragePool <{attributes}> (e)")
    assert_matches_torch(proto, {"x": X}, lambda x: functional.avg_pool2d(torch.exp(x), **options))


@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool_in_three_dimensions(count_include_pad):
    attributes = f"kernel_shape=[3,2,2], strides=[2,1,2], pads=[1,1,0,1,1,0], count_include_pad={count_include_pad}"
    proto = model(f"(float[2,3,6,5,4] x) => (float[a,b,c,d,e] y) {{ y = AveragePool <{attributes}> (x) }}")

    def expected(x):
        return functional.avg_pool3d(x, (3, 2, 2), (2, 1, 2), (1, 1, 0), count_include_pad=bool(count_include_pad))

    assert_matches_torch(proto, {"x": normal(2, 3, 6, 5, 4)}, expected)


@SHAPES
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool", "LpPool"])
def test_pooling_with_automatic_padding(shape, mode, stride, operator):
    proto = net(shape, f'y = {operator} <kernel_shape=[4,4], strides=[{stride},{stride}], auto_pad="{mode}"> (e)')

    def expected(x):
        e = torch.exp(x)
        pads = []
        for size in (7, 9):
            total = max((-(-size // stride) - 1) * stride + 4 - size, 0)
            pads += [total // 2, total - total // 2] if mode == "SAME_UPPER" else [total - total // 2, total // 2]
        if operator == "MaxPool":
            return functional.max_pool2d(functional.pad(e, pads, value=-np.inf), 4, stride)
        if operator == "LpPool":
            return 4 * functional.avg_pool2d(functional.pad(e, pads) ** 2, 4, stride) ** 0.5
        ones = functional.avg_pool2d(functional.pad(torch.ones_like(e), pads), 4, stride)
        return functional.avg_pool2d(functional.pad(e, pads), 4, stride) / ones

    assert_matches_torch(proto, {"x": X}, expected)


@SHAPES
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(shape, p):
    proto = model(f"(float[{shape}] x) => (float[a,b,c,d] y) {{ y = LpPool <kernel_shape=[2,3], p={p}> (x) }}")

    def expected(x):
        return (6 * functional.avg_pool2d(torch.abs(x) ** p, (2, 3), 1)) ** (1 / p)

    assert_matches_torch(proto, {"x": X}, expected, tolerance=1e-4)


GLOBAL = {
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax((2, 3), keepdim=True),
    "GlobalLpPool": lambda x: (x**2).sum((2, 3), keepdim=True) ** 0.5,
}


@SHAPES
@pytest.mark.parametrize("operator", GLOBAL)
def test_global_pooling(shape, operator):
    proto = model(f"(float[{shape}] x) => (float[a,b,c,d] y) {{ y = {operator} (x) }}")
    assert_matches_torch(proto, {"x": X}, GLOBAL[operator])
