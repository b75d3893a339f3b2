"""Gradients of reductions.

Below, x is the input, y the output and dy its gradient, both with the reduced axes kept as 1; i runs over what is reduced.
Where several elements are the maximum, they share the gradient equally.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, RuleOrChoice
from onnxqat.autodiff.shapes import averaged
from onnxqat.graph.ops import Ops


def _axes(call: Call) -> ir.Value | list[int] | None:
    """Returns the axes, an attribute in older operator sets; None: all of them."""
    given: ir.Value | list[int] | None = call.input(1) or call.get("axes")
    return given


def _kept(op: Ops, call: Call, *values: ir.Value) -> list[ir.Value]:
    """Gives outputs their reduced axes back; a scalar broadcasts as it is."""
    axes = _axes(call)
    if call.get("keepdims", 1) or axes is None:
        return list(values)
    return [op.Unsqueeze(value, op.ints(axes)) for value in values]


def _reduce(op: Ops, call: Call, kind: str, x: ir.Value) -> ir.Value:
    """Reduces as the node does, with the axes kept."""
    return op.reduce(kind, x, _axes(call), keepdims=True)


def reduce_sum_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceSum, y = Σxᵢ: dxᵢ = dy."""
    (dy,) = _kept(op, call, dy)
    return op.Expand(dy, op.Shape(call.required(0)))


def reduce_mean_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceMean, y = Σxᵢ/n: dxᵢ = dy/n, n the number of elements of x over that of y."""
    return reduce_sum_gradient(op, call, averaged(op, dy, call.required(0)))


def reduce_l1_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceL1, y = Σ|xᵢ|: dxᵢ = dy·sign(xᵢ)."""
    (dy,) = _kept(op, call, dy)
    return op.Mul(op.Sign(call.required(0)), dy)


def reduce_l2_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceL2, y = √Σxᵢ²: dxᵢ = dy·xᵢ/y, and 0 where y = 0."""
    dy, y = _kept(op, call, dy, call.outputs[0])
    nonzero = op.Where(op.Greater(y, 0.0), y, op.like(1.0, y))
    return op.Mul(call.required(0), op.Div(dy, nonzero))


def reduce_sum_square_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceSumSquare, y = Σxᵢ²: dxᵢ = 2·dy·xᵢ."""
    (dy,) = _kept(op, call, dy)
    return op.Mul(call.required(0), op.Mul(dy, 2.0))


def reduce_log_sum_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceLogSum, y = log Σxᵢ: dxᵢ = dy·e⁻ʸ, 0 where that has no bound."""
    dy, y = _kept(op, call, dy, call.outputs[0])
    return op.Expand(op.Mul(dy, op.finite(op.Exp(op.Neg(y)))), op.Shape(call.required(0)))


def reduce_log_sum_exp_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceLogSumExp, y = log Σexp xᵢ: dxᵢ = dy·exp(xᵢ − y)."""
    dy, y = _kept(op, call, dy, call.outputs[0])
    return op.Mul(op.Exp(op.Sub(call.required(0), y)), dy)


def reduce_prod_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceProd, y = Πxᵢ: dxᵢ = dy·Π_{j≠i} xⱼ.

    With p the product of what is not zero: p/xᵢ where no other factor is zero, 0 elsewhere; for a lone zero that is p.
    """
    x = call.required(0)
    (dy,) = _kept(op, call, dy)
    is_zero = op.Equal(x, op.like(0.0, x))
    factors = op.Where(is_zero, op.like(1.0, x), x)
    ones = op.Cast(is_zero, to=x.dtype)
    others = op.Sub(_reduce(op, call, "Sum", ones), ones)
    slope = op.finite(op.Div(_reduce(op, call, "Prod", factors), factors))
    return op.Mul(dy, op.Where(op.Equal(others, op.like(0.0, x)), slope, op.like(0.0, x)))


def reduce_extremum_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ReduceMax, ReduceMin: y = max xᵢ or min xᵢ; dxᵢ = dy where xᵢ = y, divided by their number."""
    x = call.required(0)
    dy, y = _kept(op, call, dy, call.outputs[0])
    chosen = op.Cast(op.Equal(x, y), to=x.dtype)
    return op.Mul(chosen, op.Div(dy, _reduce(op, call, "Sum", chosen)))


RULES: Mapping[str, RuleOrChoice] = {
    "ReduceMean": Custom(reduce_mean_gradient),
    "ReduceSum": Custom(reduce_sum_gradient),
    "ReduceL1": Custom(reduce_l1_gradient),
    "ReduceL2": Custom(reduce_l2_gradient),
    "ReduceLogSum": Custom(reduce_log_sum_gradient),
    "ReduceLogSumExp": Custom(reduce_log_sum_exp_gradient),
    "ReduceSumSquare": Custom(reduce_sum_square_gradient),
    "ReduceProd": Custom(reduce_prod_gradient),
    "ReduceMax": Custom(reduce_extremum_gradient),
    "ReduceMin": Custom(reduce_extremum_gradient),
}
