"""Gradients of pooling (ONNX specification: AveragePool, LpPool, GlobalLpPool, GlobalMaxPool, MaxPool).

Sum pooling is linear in x; the transposed map `_spread` lays every output's gradient on all elements of its window. The
others follow by the chain rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, Rule, RuleOrChoice
from onnxqat.autodiff.shapes import averaged, reshape
from onnxqat.autodiff.windows import Window, begins_and_ends, padded, spatial, window
from onnxqat.graph.ops import Ops


def global_average_pool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """GlobalAveragePool, y = Σ x / n: dx = dy / n."""
    x = call.required(0)
    return op.Expand(averaged(op, dy, x), op.Shape(x))


def average_pool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """AveragePool, y = Σ x / count over each window: every element of it gets dy / count.

    The padding that `pads` states counts where `count_include_pad` says so; that which `ceil_mode` adds never does.
    """
    x, w = call.required(0), window(call)
    begins, ends = begins_and_ends(op, x, w)
    one = ir.tensor([1], dtype=x.dtype)
    ones = op.ConstantOfShape(op.Concat(op.ints([1, 1]), spatial(op, x, w.rank), axis=0), value=one)
    ones = padded(op, ones, begins, ends, 1.0 if call.get("count_include_pad", 0) else 0.0)
    if w.ceil:
        ones = padded(op, ones, op.ints([0] * w.rank), op.ints([stride - 1 for stride in w.strides]))
    kernel = _kernel_of_ones(op, x, w)
    counts = op.Conv(ones, kernel, strides=w.strides, dilations=w.dilations)
    axes = list(range(2, 2 + w.rank))
    counts = op.Slice(counts, op.ints([0] * w.rank), spatial(op, dy, w.rank), op.ints(axes))
    return _spread(op, x, op.Div(dy, counts), w, begins)


def lp_pool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """LpPool, y = (Σ|x|ᵖ)^(1/p): dx = |x|^(p−1)·sign x · Σ over the windows of x of dy·y^(1−p); 0 where y = 0."""
    x, w, p = call.required(0), window(call), call.get("p", 2)
    begins, _ = begins_and_ends(op, x, w)
    return op.Mul(_spread(op, x, _outer(op, call, dy, p), w, begins), _inner(op, x, p))


def global_lp_pool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """The same with one window over all spatial axes."""
    p = call.get("p", 2)
    return op.Mul(_inner(op, call.required(0), p), _outer(op, call, dy, p))


def global_max_pool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """GlobalMaxPool: dx = dy where x = y, shared equally by several maxima; ONNX Runtime's maximum of −∞ is none."""
    x = call.required(0)
    flat = reshape(op, x, [0, 0, -1])
    chosen = op.Cast(op.Equal(flat, reshape(op, call.outputs[0], [0, 0, -1])), to=x.dtype)
    count = op.Max(op.reduce("Sum", chosen, [2], keepdims=True), op.like(1.0, x))
    share = op.Div(reshape(op, dy, [0, 0, -1]), count)
    return op.Reshape(op.Mul(chosen, share), op.Shape(x))


def max_pool_rule(node: ir.Node) -> Rule:
    """Returns the rule of MaxPool, which needs row-major indices, explicit padding, and no window beyond the data."""
    used = len(node.outputs) > 1 and (bool(node.outputs[1].uses()) or node.outputs[1].is_graph_output())
    padded_later = "auto_pad" in node.attributes or _may_pool_padding_alone(node)
    if not padded_later and not node.attributes.get_int("storage_order", 0):
        return Custom(max_pool_gradient, outputs=2)
    if padded_later and used:
        return Refused("its indices are used, and depend on padding that the model does not state; state pads")
    return Expanded(padded_max_pool if padded_later else row_major_max_pool)


def max_pool_gradient(op: Ops, call: Call, dy: ir.Value, _: ir.Value | None = None) -> ir.Value:
    """MaxPool: dy goes to the maximum of its window, whose number the second output tells."""
    return op.kernel("MaxPoolGrad", dy, call.outputs[1], call.required(0))[0]


def _may_pool_padding_alone(node: ir.Node) -> bool:
    """Whether `ceil_mode` may add a window that holds no data: ONNX leaves it out, ONNX Runtime does not."""
    w = window(Call("MaxPool", tuple(node.inputs), (), node.attributes, 0))
    return w.ceil and (any(w.pads[w.rank :]) or any(s > r for s, r in zip(w.strides, w.reach, strict=True)))


def padded_max_pool(op: Ops, call: Call) -> ir.Value:
    """Pad with −∞, then pool all windows that begin before the padding at the end does."""
    x, w = call.required(0), window(call)
    begins, ends = begins_and_ends(op, x, w)
    longer = op.Add(ends, op.ints([stride - 1 for stride in w.strides])) if w.ceil else ends
    kept = {"dilations": w.dilations, "kernel_shape": w.kernel, "strides": w.strides}
    y = op.MaxPool(padded(op, x, begins, longer, float("-inf")), **kept)
    covered = op.Add(op.Add(begins, spatial(op, x, w.rank)), op.ints([stride - 1 for stride in w.strides]))
    count = op.Div(covered, op.ints(w.strides))
    return op.Slice(y, op.ints([0] * w.rank), count, op.ints(list(range(2, 2 + w.rank))))


def row_major_max_pool(op: Ops, call: Call) -> list[ir.Value]:
    """The same maxima, and column-major indices from a pooling of their own."""
    attributes = {name: call.get(name) for name in call.attributes}
    indices = op.many("MaxPool", call.required(0), _outputs=2, **attributes)[1]
    return [op.MaxPool(call.required(0), **attributes | {"storage_order": 0}), indices][: len(call.outputs)]


def _kernel_of_ones(op: Ops, x: ir.Value, w: Window) -> ir.Value:
    assert x.dtype is not None
    return op.Constant(value=ir.tensor(np.ones([1, 1, *w.kernel], x.dtype.numpy())))


def _spread(op: Ops, x: ir.Value, dy: ir.Value, w: Window, begins: ir.Value) -> ir.Value:
    """Σ over all windows that hold an element of their dy, for each element of `x`: a transposed convolution of ones.

    Its result begins at the padding in front, and may end before `x` does, or after it.
    """
    size = spatial(op, x, w.rank)
    planes = op.Reshape(dy, op.Concat(op.ints([-1, 1]), spatial(op, dy, w.rank), axis=0))
    kernel = _kernel_of_ones(op, x, w)
    spread = op.ConvTranspose(planes, kernel, strides=w.strides, dilations=w.dilations)
    ends = op.Add(begins, size)
    missing = op.Max(op.Sub(ends, spatial(op, spread, w.rank)), op.ints([0]))
    spread = padded(op, spread, op.ints([0] * w.rank), missing)
    cut = op.Slice(spread, begins, ends, op.ints(list(range(2, 2 + w.rank))))
    return op.Reshape(cut, op.Shape(x))


def _outer(op: Ops, call: Call, dy: ir.Value, p: int) -> ir.Value:
    """dy·y^(1−p), 0 where y = 0."""
    if p == 1:
        return dy
    y = call.outputs[0]
    nonzero = op.Greater(y, op.like(0.0, y))
    power = op.Pow(op.Where(nonzero, y, op.like(1.0, y)), op.like(1.0 - p, y))
    return op.Where(nonzero, op.Mul(dy, power), op.like(0.0, y))


def _inner(op: Ops, x: ir.Value, p: int) -> ir.Value:
    """|x|^(p−1)·sign x."""
    if p == 1:
        return op.Sign(x)
    if p == 2:
        return x
    return op.Mul(op.Sign(x), op.Pow(op.Abs(x), op.like(p - 1.0, x)))


RULES: Mapping[str, RuleOrChoice] = {
    "GlobalAveragePool": Custom(global_average_pool_gradient),
    "AveragePool": Custom(average_pool_gradient),
    "MaxPool": max_pool_rule,
    "LpPool": Custom(lp_pool_gradient),
    "GlobalLpPool": Custom(global_lp_pool_gradient),
    "GlobalMaxPool": Custom(global_max_pool_gradient),
}
