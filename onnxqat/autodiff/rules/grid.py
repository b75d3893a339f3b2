"""Gradients of GridSample and AffineGrid.

GridSample reads x at positions p between its elements: y = Σ_k w_k(p)·x[i_k(p)], a product over the axes of one-dimensional
interpolations with 1 (nearest), 2 (linear) or 4 (cubic) taps each. So dx adds w_k·dy to element i_k, and dp = Σ_k w_k′·x[i_k]·dy.
Positions, padding and Keys' cubic kernel (a = −0.75) are those of the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Refused, RuleOrChoice
from onnxqat.autodiff.rules.resize import cubic_weights
from onnxqat.autodiff.shapes import reshape, size, sizes, zeros
from onnxqat.graph.ops import Ops

_INT64 = ir.DataType.INT64
_TAPS = {"nearest": (0, 0), "linear": (0, 1), "cubic": (-1, 2)}  # first and last, from ⌊p⌋ (nearest: from p rounded)
_A = -0.75


@dataclass(frozen=True)
class _Taps:
    """Contribution of one axis: tensors (N, P, …, K, …) of batch, points, and taps on a dimension of the axis's own.

    Attributes:
        indices: elements along the axis.
        weights: their weights.
        slopes: the weights' derivatives by the grid's coordinate.
        size: number of elements along the axis.
    """

    indices: ir.Value
    weights: ir.Value
    slopes: ir.Value
    size: ir.Value


def grid_sample_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of GridSample; the number of axes must be known."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return Refused("the rank of its input is not known; give the input a shape")
    return Custom(grid_sample_gradient, inputs=frozenset({0, 1}))


def grid_sample_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Scatters dy to the elements that were read; sums it, weighted by them, for the positions."""
    x, rank = call.inputs[0], call.rank()
    assert x is not None
    assert rank is not None
    axes = [_axis_taps(op, call, axis, rank - 2) for axis in range(rank - 2)]
    flat = axes[0].indices
    for axis in axes[1:]:
        flat = op.Add(op.Mul(flat, axis.size), axis.indices)
    channels = op.Concat(sizes(op, x, [0, 1]), op.ints([1]), axis=0)
    indices = op.Expand(reshape(op, flat, [0, 1, -1]), channels)  # (N, C, P·K)
    upstream = reshape(op, dy, [0, 0, -1, 1])  # (N, C, P, 1)
    dx = _image_gradient(op, x, indices, upstream, axes, _count(call)) if 0 in call.wanted else None
    dgrid = _grid_gradient(op, call, indices, upstream, axes) if 1 in call.wanted else None
    return [dx, dgrid]


def _image_gradient(
    op: Ops, x: ir.Value, indices: ir.Value, upstream: ir.Value, axes: Sequence[_Taps], taps: int
) -> ir.Value:
    weights = reshape(op, reduce(op.Mul, [axis.weights for axis in axes]), [0, 1, -1, taps ** len(axes)])
    updates = reshape(op, op.Mul(upstream, weights), [0, 0, -1])
    flat = zeros(op, op.Shape(reshape(op, x, [0, 0, -1])), x.dtype or ir.DataType.FLOAT)
    return op.Reshape(op.ScatterElements(flat, indices, updates, axis=2, reduction="add"), op.Shape(x))


def _grid_gradient(op: Ops, call: Call, indices: ir.Value, upstream: ir.Value, axes: Sequence[_Taps]) -> ir.Value:
    x, grid = call.inputs
    assert x is not None
    taps, dims = _count(call), list(range(2, 2 + len(axes)))
    read = op.GatherElements(reshape(op, x, [0, 0, -1]), indices, axis=2)
    read = reshape(op, read, [0, 0, -1, taps ** len(axes)])
    felt = op.reduce("Sum", op.Mul(upstream, read), [1], keepdims=False)
    felt = reshape(op, felt, [0, 0, *[taps] * len(axes)])
    parts = []
    for own in reversed(axes):
        factors = [axis.slopes if axis is own else axis.weights for axis in axes]
        summed = op.reduce("Sum", reduce(op.Mul, factors, felt), dims, keepdims=False)
        parts.append(op.Unsqueeze(summed, op.ints([2])))
    return op.Reshape(op.Concat(*parts, axis=-1), op.Shape(grid))


def affine_grid_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """AffineGrid, grid = theta·(base, 1): dtheta = Σ over points of dy·(base, 1)ᵀ; base is the grid of the identity."""
    theta = call.inputs[0]
    assert theta is not None
    axes = size(op, theta, 1)
    square = op.Concat(*[op.Unsqueeze(axes, op.ints([0]))] * 2, axis=0)
    identity = op.EyeLike(zeros(op, square, theta.dtype or ir.DataType.FLOAT))
    shift = op.ReduceSum(op.Mul(identity, 0.0), op.ints([1]), keepdims=1)
    one = op.Expand(op.Concat(identity, shift, axis=1), op.Shape(theta))
    base = op.AffineGrid(one, call.inputs[1], align_corners=call.get("align_corners", 0))
    points = op.Concat(sizes(op, theta, [0]), op.ints([-1]), sizes(op, theta, [1]), axis=0)
    base, upstream = op.Reshape(base, points), op.Reshape(dy, points)
    ones = op.Add(op.Mul(op.Slice(base, op.ints([0]), op.ints([1]), op.ints([2])), 0.0), 1.0)
    return op.MatMul(op.Transpose(upstream, perm=[0, 2, 1]), op.Concat(base, ones, axis=2))


def _mode(call: Call) -> str:
    name = call.attributes["mode"].as_string() if "mode" in call.attributes else "linear"
    return name.removeprefix("bi")


def _count(call: Call) -> int:
    first, last = _TAPS[_mode(call)]
    return last - first + 1


def _axis_taps(op: Ops, call: Call, axis: int, axes: int) -> _Taps:
    x, grid = call.inputs
    assert x is not None
    aligned, padding = call.get("align_corners", 0), "zeros"
    if "padding_mode" in call.attributes:
        padding = call.attributes["padding_mode"].as_string()
    count = size(op, x, 2 + axis)
    n = op.Cast(count, to=x.dtype or ir.DataType.FLOAT)
    last = op.Sub(n, 1.0)
    # The grid says x, y, z; x is the last axis.
    coordinate = reshape(op, op.Gather(grid, op.Constant(value_int=axes - 1 - axis), axis=-1), [0, -1, 1])
    stretch = op.Mul(last if aligned else n, 0.5)
    position = op.Add(op.Mul(coordinate, stretch), op.Mul(last, 0.5))
    taps, weights, slopes = _interpolation(op, _mode(call), position)
    outside = op.Or(op.Less(taps, 0.0), op.Greater(taps, last))
    if padding == "zeros":
        weights, slopes = (op.Where(outside, op.like(0.0, v), v) for v in (weights, slopes))
    elif padding == "reflection":
        taps = _reflected(op, taps, last, aligned=bool(aligned))
    indices = op.Cast(op.Min(op.Max(taps, op.like(0.0, taps)), last), to=_INT64)
    spread = op.ints([0, 0, *(-1 if i == axis else 1 for i in range(axes))])
    weights, slopes = op.Reshape(weights, spread), op.Reshape(op.Mul(slopes, stretch), spread)
    return _Taps(op.Reshape(indices, spread), weights, slopes, count)


def _interpolation(op: Ops, mode: str, position: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Returns taps, weights and the weights' derivatives by the position, each (N, P, K)."""
    first, last = _TAPS[mode]
    offsets = op.Constant(value_floats=[float(k) for k in range(first, last + 1)])
    offsets = op.Cast(offsets, to=position.dtype or ir.DataType.FLOAT)
    if mode == "nearest":
        taps = op.Add(op.Round(position), offsets)
        zero = op.Mul(taps, 0.0)
        return taps, op.Add(zero, 1.0), zero
    taps = op.Add(op.Floor(position), offsets)
    signed = op.Sub(position, taps)
    away = op.Abs(signed)
    if mode == "linear":
        falling_and_rising = op.Cast(op.Constant(value_floats=[-1.0, 1.0]), to=position.dtype or ir.DataType.FLOAT)
        return taps, op.Sub(1.0, away), op.Add(op.Mul(signed, 0.0), falling_and_rising)
    slopes = op.Where(
        op.LessOrEqual(away, 1.0),
        op.Mul(away, op.Sub(op.Mul(away, 3 * (_A + 2)), 2 * (_A + 3))),
        op.Mul(op.Add(op.Mul(op.Sub(op.Mul(away, 3.0), 10.0), away), 8.0), _A),
    )
    return taps, cubic_weights(op, away, _A), op.Mul(slopes, op.Sign(signed))


def _reflected(op: Ops, taps: ir.Value, last: ir.Value, *, aligned: bool) -> ir.Value:
    """Mirrors at the outermost elements if corners are aligned, else half an element beyond them."""
    if aligned:  # period 2·last: …, 1, 0, 1, …, last, last − 1, …
        period = op.Max(op.Mul(last, 2.0), op.like(1.0, taps))
        turned = op.Mod(op.Abs(taps), period, fmod=1)
        return op.Min(turned, op.Sub(period, turned))
    period = op.Mul(op.Add(last, 1.0), 2.0)  # …, 1, 0, 0, 1, …, last, last, …
    shifted = op.Where(op.Less(taps, 0.0), op.Sub(op.Neg(taps), 1.0), taps)
    turned = op.Mod(shifted, period, fmod=1)
    return op.Min(turned, op.Sub(op.Sub(period, turned), 1.0))


RULES: Mapping[str, RuleOrChoice] = {
    "GridSample": grid_sample_rule,
    "AffineGrid": Custom(affine_grid_gradient, inputs=frozenset({0})),
}
