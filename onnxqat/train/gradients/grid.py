"""Gradients of GridSample and AffineGrid.

GridSample reads x at positions p between its elements: y = Σ_k w_k(p)·x[i_k(p)], a product over the axes of one-dimensional
interpolations with 1 (nearest), 2 (linear) or 4 (cubic) taps each. So dx adds w_k·dy to element i_k, and dp = Σ_k w_k′·x[i_k]·dy.
Positions, padding and Keys' cubic kernel (a = −0.75) are those of the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir

from onnxqat.train.gradients.rule import Call, Custom, Ops, Refused
from onnxqat.train.gradients.shapes import reshape, size, sizes, zeros

_INT64 = ir.DataType.INT64
_TAPS = {"nearest": (0, 0), "linear": (0, 1), "cubic": (-1, 2)}  # first and last, from ⌊p⌋ (nearest: from p rounded)
_A = -0.75


@dataclass(frozen=True)
class _Taps:
    """What one axis contributes; N batch, P points, K taps.

    Attributes:
        indices: elements along the axis, (N, P, K).
        weights: their weights, (N, P, K).
        slopes: the weights' derivatives by the grid's coordinate, (N, P, K).
        size: number of elements along the axis.
    """

    indices: ir.Value
    weights: ir.Value
    slopes: ir.Value
    size: ir.Value


def grid_sample_rule(node: ir.Node) -> Custom | Refused:
    """The number of axes must be known."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        return Refused("the rank of its input is not known; give the input a shape")
    return Custom(grid_sample_gradient, frozenset({0, 1}))


def grid_sample_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Scatters dy to the elements that were read; sums it, weighted by them, for the positions."""
    x, grid = call.inputs
    assert x is not None
    assert grid is not None
    rank = call.rank()
    assert rank is not None
    axes = [_axis_taps(op, call, axis, rank - 2) for axis in range(rank - 2)]
    many = [op.Reshape(axis.weights, op.ints(_spread(i, len(axes)))) for i, axis in enumerate(axes)]
    flat = reduce(
        lambda total, i: op.Add(
            op.Mul(total, axes[i].size), op.Reshape(axes[i].indices, op.ints(_spread(i, len(axes))))
        ),
        range(1, len(axes)),
        op.Reshape(axes[0].indices, op.ints(_spread(0, len(axes)))),
    )
    indices = op.Expand(reshape(op, flat, [0, 1, -1]), op.Concat(sizes(op, x, [0, 1]), op.ints([1]), axis=0))
    upstream = reshape(op, dy, [0, 0, -1, 1])  # (N, C, P, 1)
    dx = dgrid = None
    if 0 in call.wanted:
        weights = reshape(op, reduce(op.Mul, many), [0, 1, -1], op.ints([_combinations(call, len(axes))]))
        updates = reshape(op, op.Mul(upstream, weights), [0, 0, -1])
        flat_zeros = zeros(op, op.Shape(reshape(op, x, [0, 0, -1])), x.dtype or ir.DataType.FLOAT)
        dx = op.Reshape(op.ScatterElements(flat_zeros, indices, updates, axis=2, reduction="add"), op.Shape(x))
    if 1 in call.wanted:
        read = op.GatherElements(reshape(op, x, [0, 0, -1]), indices, axis=2)
        read = reshape(op, read, [0, 0, -1], op.ints([_combinations(call, len(axes))]))
        felt = op.reduce("Sum", op.Mul(upstream, read), [1], keepdims=False)  # (N, P, K…)
        felt = reshape(op, felt, [0, 0], op.ints([_count(call)] * len(axes)))
        parts = [_coordinate(op, felt, axes, many, i) for i in reversed(range(len(axes)))]
        dgrid = op.Reshape(op.Concat(*parts, axis=-1), op.Shape(grid))
    return [dx, dgrid]


def affine_grid_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Grid = theta·(base, 1): dtheta = Σ over points of dy·(base, 1)ᵀ, where base is the grid of the identity."""
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


def _combinations(call: Call, axes: int) -> int:
    return int(_count(call) ** axes)


def _spread(axis: int, axes: int) -> list[int]:
    """Returns the shape that puts the taps of one axis on a dimension of their own, after N and P."""
    return [0, 0, *(-1 if i == axis else 1 for i in range(axes))]


def _coordinate(op: Ops, felt: ir.Value, axes: Sequence[_Taps], weights: Sequence[ir.Value], index: int) -> ir.Value:
    """Returns the gradient of the coordinate along one axis, (N, P, 1)."""
    slope = op.Reshape(axes[index].slopes, op.ints(_spread(index, len(axes))))
    factors = [slope if i == index else weight for i, weight in enumerate(weights)]
    total = reduce(op.Mul, factors, felt)
    summed = op.reduce("Sum", total, list(range(2, 2 + len(axes))), keepdims=False)
    return op.Unsqueeze(summed, op.ints([2]))


def _axis_taps(op: Ops, call: Call, axis: int, axes: int) -> _Taps:
    x, grid = call.inputs
    assert x is not None
    aligned, padding = call.get("align_corners", 0), "zeros"
    if "padding_mode" in call.attributes:
        padding = call.attributes["padding_mode"].as_string()
    count = size(op, x, 2 + axis)
    n = op.Cast(count, to=x.dtype or ir.DataType.FLOAT)
    last = op.Sub(n, 1.0)
    coordinate = op.Gather(
        grid, op.Constant(value_int=axes - 1 - axis), axis=-1
    )  # the grid says x, y, z; x is the last axis
    coordinate = reshape(op, coordinate, [0, -1, 1])
    stretch = op.Mul(last if aligned else n, 0.5)
    position = op.Add(op.Mul(coordinate, stretch), op.Mul(last, 0.5))
    taps, weights, slopes = _interpolation(op, _mode(call), position)
    outside = op.Or(op.Less(taps, 0.0), op.Greater(taps, last))
    if padding == "zeros":
        weights, slopes = (op.Where(outside, op.like(0.0, v), v) for v in (weights, slopes))
    elif padding == "reflection":
        taps = _reflected(op, taps, last, aligned=bool(aligned))
    indices = op.Cast(op.Min(op.Max(taps, op.like(0.0, taps)), last), to=_INT64)
    return _Taps(indices, weights, op.Mul(slopes, stretch), count)


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
    away, direction = op.Abs(signed), op.Sign(signed)
    if mode == "linear":
        ahead = op.Where(
            op.Less(op.Add(offsets, op.Mul(signed, 0.0)), 0.5), op.like(-1.0, signed), op.like(1.0, signed)
        )
        return taps, op.Sub(1.0, away), ahead
    near = op.LessOrEqual(away, 1.0)
    squared = op.Mul(away, away)
    weights = op.Where(
        near,
        op.Add(op.Mul(squared, op.Sub(op.Mul(away, _A + 2), _A + 3)), 1.0),
        op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(away, 5.0), away), 8.0), away), 4.0), _A),
    )
    slopes = op.Where(
        near,
        op.Mul(away, op.Sub(op.Mul(away, 3 * (_A + 2)), 2 * (_A + 3))),
        op.Mul(op.Add(op.Mul(op.Sub(op.Mul(away, 3.0), 10.0), away), 8.0), _A),
    )
    return taps, weights, op.Mul(slopes, direction)


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
