"""Gradients of operators that choose elements by their place: Gather, Slice, Pad, TopK, the scatter operators and their like.

Pad and Slice copy elements: applied to the elements' numbers they say where each came from, and the gradient is added up
there.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Refused, Rule, RuleOrChoice
from onnxqat.autodiff.shapes import added_up, arange, zeros
from onnxqat.graph.ops import Ops

_FIRST = frozenset({0})


def _numbers(op: Ops, x: ir.Value) -> ir.Value:
    """0, 1, … in the shape of `x`."""
    return op.Reshape(arange(op, op.Size(x)), op.Shape(x))


def pad_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Constant: dx = dy padded by −pads (a crop), and the padding's value gets the rest of Σ dy. Other modes add up copies."""
    x, pads, mode = call.required(0), call.required(1), call.get("mode", "constant")
    axes = [call.inputs[3]] if call.input(3) is not None else []
    if mode != "constant":
        return [added_up(op, dy, op.Pad(_numbers(op, x), pads, *([None, *axes] if axes else []), mode=mode), x)]
    dx = op.Pad(dy, op.Neg(pads), op.like(0.0, x), *axes)
    if 2 not in call.wanted:
        return [dx]
    rest = op.Sub(op.reduce("Sum", dy, None, keepdims=False), op.reduce("Sum", dx, None, keepdims=False))
    return [dx, None, op.Reshape(rest, op.Shape(call.inputs[2]))]


def slice_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Every element of dy goes back to where it came from; a slice without gaps is padded."""
    x = call.required(0)
    if call.input(4) is None or set(call.constant(4) or ()) == {1}:
        return _uncut(op, call, dy)
    return added_up(op, dy, op.Slice(_numbers(op, x), *call.inputs[1:]), x)


def _uncut(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Pads dy in front by where the slice starts, as ONNX counts it, and at the end by what is then missing."""
    x, starts = call.required(0), op.Cast(call.inputs[1], to=ir.DataType.INT64)
    shape = op.Shape(x)
    axes = call.input(3)
    axes = arange(op, op.Size(starts)) if axes is None else op.Cast(axes, to=ir.DataType.INT64)
    lengths, none = op.Gather(shape, axes), op.ints([0])
    starts = op.Where(op.Less(starts, none), op.Add(starts, lengths), starts)
    starts = op.Min(op.Max(starts, none), lengths)
    front = op.ScatterElements(zeros(op, op.Shape(shape), ir.DataType.INT64), axes, starts)
    behind = op.Sub(op.Sub(shape, op.Shape(dy)), front)
    return op.Pad(dy, op.Concat(front, behind, axis=0))


def gather_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Gather: see `kernels.indexing`."""
    return op.kernel("GatherGrad", op.Shape(call.required(0)), call.inputs[1], dy, axis=call.get("axis", 0))[0]


def gather_elements_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """GatherElements: see `kernels.indexing`."""
    shape = op.Shape(call.required(0))
    return op.kernel("GatherElementsGrad", dy, shape, call.inputs[1], axis=call.get("axis", 0))[0]


def gather_nd_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Every element of dy goes back to where it came from."""
    x = call.required(0)
    numbers = op.GatherND(_numbers(op, x), call.inputs[1], batch_dims=call.get("batch_dims", 0))
    return added_up(op, dy, numbers, x)


def top_k_gradient(op: Ops, call: Call, dy: ir.Value, _: ir.Value | None = None) -> ir.Value:
    """TopK: dy goes back to the elements that were chosen."""
    x = call.required(0)
    blank = zeros(op, op.Shape(x), dy.dtype or ir.DataType.FLOAT)
    return op.ScatterElements(blank, call.outputs[1], dy, axis=call.get("axis", -1))


def scatter_rule(node: ir.Node) -> Rule:
    """Returns the rule of a scatter operator; without reduction its indices are distinct."""
    reduction = node.attributes.get_string("reduction", "none")
    known = reduction in ("none", "add", "mul", "max", "min")
    return (
        Custom(scatter_gradient, inputs=frozenset({0, 2}))
        if known
        else Refused(f"reduction {reduction!r} has no gradient")
    )


def scatter_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """With G the gather at the same indices: y = x ∘ u₁ ∘ u₂ … for the updates u that meet at an element of x.

    None: du = G dy, and dx = dy where no update came. Sum: dx = dy, du = G dy. Product: dy times all other factors, as in
    `reduce_prod_gradient`. Maximum and minimum: dy for those that are it, divided by their number.
    """
    x, updates, reduction = call.required(0), call.required(2), call.get("reduction", "none")
    if reduction == "none":
        blank = zeros(op, op.Shape(updates), dy.dtype or ir.DataType.FLOAT)
        return [_scattered(op, call, dy, blank, reduction), None, _gathered(op, call, dy)]
    if reduction == "add":
        return [dy, None, _gathered(op, call, dy)]
    if reduction == "mul":
        return _product(op, call, dy)
    y = call.outputs[0]
    first = op.Cast(op.Equal(x, y), to=x.dtype)
    later = op.Cast(op.Equal(updates, _gathered(op, call, y)), to=x.dtype)
    share = op.Div(dy, _scattered(op, call, first, later, "add"))
    return [op.Mul(first, share), None, op.Mul(later, _gathered(op, call, share))]


def _product(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    x, updates = call.required(0), call.required(2)
    one, none = op.like(1.0, x), op.like(0.0, x)
    zeros = [op.Equal(value, none) for value in (x, updates)]
    factors = [op.Where(zero, one, value) for zero, value in zip(zeros, (x, updates), strict=True)]
    counts = [op.Cast(zero, to=x.dtype) for zero in zeros]
    product = op.Mul(dy, _scattered(op, call, factors[0], factors[1], "mul"))
    count = _scattered(op, call, counts[0], counts[1], "add")

    def others(total: ir.Value, zero_count: ir.Value, own: ir.Value, factor: ir.Value) -> ir.Value:
        return op.Where(op.Equal(op.Sub(zero_count, own), none), op.Div(total, factor), none)

    dx = others(product, count, counts[0], factors[0])
    return [dx, None, others(_gathered(op, call, product), _gathered(op, call, count), counts[1], factors[1])]


def _scattered(op: Ops, call: Call, x: ir.Value, updates: ir.Value, reduction: str) -> ir.Value:
    along = {"axis": call.get("axis", 0)} if call.op_type == "ScatterElements" else {}
    return op.one(call.op_type, x, call.inputs[1], updates, reduction=reduction, **along)


def _gathered(op: Ops, call: Call, x: ir.Value) -> ir.Value:
    if call.op_type == "ScatterND":
        return op.GatherND(x, call.inputs[1])
    return op.GatherElements(x, call.inputs[1], axis=call.get("axis", 0))


RULES: Mapping[str, RuleOrChoice] = {
    "Gather": Custom(gather_gradient, inputs=_FIRST),
    "GatherElements": Custom(gather_elements_gradient, inputs=_FIRST),
    "GatherND": Custom(gather_nd_gradient, inputs=_FIRST),
    "TopK": Custom(top_k_gradient, inputs=_FIRST),
    "Pad": Custom(pad_gradient, inputs=frozenset({0, 2})),
    "Slice": Custom(slice_gradient, inputs=_FIRST),
    "ScatterElements": scatter_rule,
    "ScatterND": scatter_rule,
}
