"""Gradient of Resize: along each axis y = M·x with an interpolation matrix M, so that dx = Mᵀ·dy.

M is computed in the graph from the sizes at hand, so that height and width may be dynamic; where they are not, ONNX Runtime
folds it into a constant. Coordinates and coefficients are those of the ONNX specification, in float32 as in ONNX Runtime's
kernel, so that both round alike; cubic coefficients are Keys 1981, equation 4. Nearest neighbour upscaling by a whole number,
which needs no matrix, sums blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import arange, reshape, size, sizes
from onnxqat.graph.ops import Ops

_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_BLOCKS = {  # where output o of a whole scale s reads input ⌊o/s⌋: rounding modes by coordinate mode
    "asymmetric": ("floor",),
    "half_pixel": ("round_prefer_floor", "round_prefer_ceil"),
    "half_pixel_symmetric": ("round_prefer_floor", "round_prefer_ceil"),
    "pytorch_half_pixel": ("round_prefer_floor", "round_prefer_ceil"),
    "tf_half_pixel_for_nn": ("floor",),
}


@dataclass(frozen=True)
class _Axis:
    """One axis that is resized.

    Attributes:
        axis: the axis.
        position: its place in `scales`, `sizes` and both halves of `roi`.
        scale: output size over input size where the model says it.
    """

    axis: int
    position: int
    scale: float | None


def resize_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of Resize; the axes that it resizes must be known.

    With align_corners, ONNX measures the step in `scale · input size`, ONNX Runtime in that number rounded down: refused where
    the two may differ.
    """
    x = node.inputs[0]
    if x is None or x.shape is None:
        return Refused("the rank of its input is not known; give the input a shape")
    call = Call(node.op_type, tuple(node.inputs), tuple(node.outputs), node.attributes, 0)
    aligned = _text(call, "coordinate_transformation_mode", "half_pixel") == "align_corners"
    if aligned and _has(call, 2) and not all(_grows_to_whole(call, axis) for axis in _axes(call)):
        return Refused("align_corners with a fractional scale: ONNX Runtime and ONNX disagree; give sizes, not scales")
    if _crops(call) and not all(_region_counts(call, axis) for axis in _axes(call)):
        return Refused("ONNX Runtime ignores the region of interest along axes that keep their size; crop with Slice")
    coordinates = _text(call, "coordinate_transformation_mode", "half_pixel")
    nearest = _text(call, "mode", "nearest") == "nearest"
    if nearest and coordinates == "half_pixel_symmetric" and _whole_factors(call, _axes(call)) is None:
        return Refused("half_pixel_symmetric: which of two equally near elements is taken is not known; use half_pixel")
    return Custom(resize_gradient, inputs=frozenset({0}))


def _region_counts(call: Call, axis: _Axis) -> bool:
    """Says whether ONNX Runtime uses the region along the axis for sure, or it is the whole of it."""
    roi, count = call.constant(1), len(call.get("axes", range(_rank(call))))
    whole = roi is not None and (roi[axis.position], roi[count + axis.position]) == (0.0, 1.0)
    return whole or axis.scale not in (None, 1.0)


def _grows_to_whole(call: Call, axis: _Axis) -> bool:
    """Says whether scale · input size is a whole number for sure."""
    before = _side(call.inputs[0], axis.axis)
    size_after = None if axis.scale is None else axis.scale * (before if isinstance(before, int) else 1)
    return size_after is not None and size_after == int(size_after)


def resize_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Applies the transposed interpolation of each axis that changes, the last one first."""
    axes = _axes(call)
    factors = _whole_factors(call, axes)
    if factors is not None:
        return _sum_blocks(op, call, dy, factors)
    common = _common_scale(op, call, axes)
    whole, y = list(range(_rank(call))), dy
    for axis in reversed(axes):
        matrix = _matrix(op, call, axis, dy, common)
        alone = bool(call.get("antialias", 0))
        if _may_keep_size(call, [axis] if alone else axes):
            same = _same_sizes(op, call, y, [axis.axis] if alone else whole)
            matrix = op.Where(same, op.EyeLike(matrix), matrix)
        if dy.dtype not in (_FLOAT, None):
            matrix = op.Cast(matrix, to=dy.dtype)
        dy = _contract(op, dy, matrix, axis.axis, _rank(call))
    return dy


def _rank(call: Call) -> int:
    rank = call.rank()
    assert rank is not None
    return rank


def _text(call: Call, name: str, default: str) -> str:
    attribute = call.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _has(call: Call, index: int) -> bool:
    """Says whether an input is there: one that is left out may also be an empty tensor."""
    return call.input(index) is not None and call.constant(index) != []


def _axes(call: Call) -> list[_Axis]:
    """Returns the axes of the operator without those that stay as they are."""
    rank = _rank(call)
    numbers = [axis % rank for axis in call.get("axes", range(rank))]
    scales = call.constant(2) if _has(call, 2) else None
    axes = []
    for position, axis in enumerate(numbers):
        sides = [_side(call.inputs[0], axis), _side(call.outputs[0], axis)]
        scale = scales[position] if scales else _ratio(*sides)
        stays = scale == 1.0 or (not _has(call, 2) and sides[0] is not None and sides[0] == sides[1])
        if _crops(call) or not stays:
            axes.append(_Axis(axis, position, scale))
    return axes


def _crops(call: Call) -> bool:
    return _text(call, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"


def _side(value: ir.Value | None, axis: int) -> int | str | None:
    """Returns a size as far as the model says it: a number, or a name."""
    if value is None or value.shape is None:
        return None
    side = value.shape[axis]
    return side if isinstance(side, int) else side.value


def _ratio(before: int | str | None, after: int | str | None) -> float | None:
    return after / before if isinstance(before, int) and isinstance(after, int) and before else None


def _whole_factors(call: Call, axes: Sequence[_Axis]) -> dict[int, int] | None:
    """Returns by how much each axis grows if every element is repeated a whole number of times, else None."""
    coordinates = _text(call, "coordinate_transformation_mode", "half_pixel")
    rounding = _text(call, "nearest_mode", "round_prefer_floor")
    if _text(call, "mode", "nearest") != "nearest" or rounding not in _BLOCKS.get(coordinates, ()):
        return None
    if any(axis.scale is None or axis.scale != int(axis.scale) for axis in axes):
        return None
    return {axis.axis: int(axis.scale) for axis in axes if axis.scale is not None}


def _sum_blocks(op: Ops, call: Call, dy: ir.Value, factors: Mapping[int, int]) -> ir.Value:
    """Each x was repeated: its gradient is the sum over its copies, axis by axis."""
    x, rank = call.inputs[0], _rank(call)
    assert x is not None
    for axis in sorted(factors, reverse=True):
        ahead, behind = sizes(op, dy, range(axis)), sizes(op, dy, range(axis + 1, rank))
        apart = reshape(op, dy, ahead, sizes(op, x, [axis]), [factors[axis]], behind)
        dy = op.reduce("Sum", apart, [axis + 1], keepdims=False)
    return dy


def _common_scale(op: Ops, call: Call, axes: Sequence[_Axis]) -> ir.Value | None:
    """With an aspect ratio to keep, all axes have the smallest (or largest) of their scales."""
    policy = _text(call, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch" or not _has(call, 3):
        return None
    x, wanted = call.inputs[0], call.inputs[3]
    assert x is not None
    rank = _rank(call)
    before = sizes(op, x, [axis % rank for axis in call.get("axes", range(rank))])
    scales = op.Div(op.Cast(wanted, to=_FLOAT), op.Cast(before, to=_FLOAT))
    return op.reduce("Min" if policy == "not_larger" else "Max", scales, None, keepdims=False)


def _may_keep_size(call: Call, axes: Sequence[_Axis]) -> bool:
    """Says whether scales other than 1 might round to the input's own sizes, where ONNX Runtime copies x.

    It does so where all sizes stay, with antialias axis by axis.
    """
    return _has(call, 2) and all(axis.scale is None or 1 < axis.scale < 2 for axis in axes)


def _same_sizes(op: Ops, call: Call, y: ir.Value, axes: Sequence[int]) -> ir.Value:
    x = call.inputs[0]
    assert x is not None
    equal = op.Cast(op.Equal(sizes(op, x, axes), sizes(op, y, axes)), to=_INT64)
    return op.Cast(op.reduce("Min", equal, None, keepdims=False), to=ir.DataType.BOOL)


def _matrix(op: Ops, call: Call, axis: _Axis, dy: ir.Value, common: ir.Value | None) -> ir.Value:
    """Returns M of shape (output size, input size)."""
    x = call.inputs[0]
    assert x is not None
    before, after = size(op, x, axis.axis), size(op, dy, axis.axis)
    n_in, n_out = op.Cast(before, to=_FLOAT), op.Cast(after, to=_FLOAT)
    scale = common if common is not None else _scale(op, call, axis, n_in, n_out)
    source = _source(op, call, axis, op.Cast(arange(op, after), to=_FLOAT), n_in, n_out, scale)
    last = op.Sub(n_in, 1.0)
    taps, weights = _taps(op, call, op.Unsqueeze(source, op.ints([1])), scale)
    outside = op.Or(op.Less(taps, 0.0), op.Greater(taps, last))
    mode = _text(call, "mode", "nearest")
    if call.get("exclude_outside", 0) and mode != "nearest":
        weights = op.Where(outside, op.like(0.0, weights), weights)
    if call.get("exclude_outside", 0) or call.get("antialias", 0):
        weights = op.Div(weights, op.reduce("Sum", weights, [1], keepdims=True))
    if _crops(call):
        beyond = op.Unsqueeze(op.Or(op.Less(source, 0.0), op.Greater(source, last)), op.ints([1]))
        weights = op.Where(beyond, op.like(0.0, weights), weights)
    indices = op.Cast(op.Min(op.Max(taps, op.like(0.0, taps)), last), to=_INT64)
    # Not OneHot, which crashes where there is no output.
    hot = op.Cast(op.Equal(op.Unsqueeze(indices, op.ints([2])), arange(op, before)), to=_FLOAT)
    return op.reduce("Sum", op.Mul(op.Unsqueeze(weights, op.ints([2])), hot), [1], keepdims=False)


def _scale(op: Ops, call: Call, axis: _Axis, n_in: ir.Value, n_out: ir.Value) -> ir.Value:
    if not _has(call, 2):
        return op.Div(n_out, n_in)
    return op.Gather(call.inputs[2], op.Constant(value_int=axis.position))


def _source(
    op: Ops, call: Call, axis: _Axis, o: ir.Value, n_in: ir.Value, n_out: ir.Value, scale: ir.Value
) -> ir.Value:
    """Returns where in the input each output o lies, by the specification's formula for the coordinate mode."""
    mode = _text(call, "coordinate_transformation_mode", "half_pixel")
    if mode in ("align_corners", "tf_crop_and_resize"):
        return _between_corners(op, call, axis, o, n_in, n_out)
    if mode == "asymmetric":
        return op.Div(o, scale)
    middle = op.Div(op.Add(o, 0.5), scale)
    if mode == "tf_half_pixel_for_nn":
        return middle
    half = op.Sub(middle, 0.5)
    if mode == "half_pixel_symmetric":
        adjustment = op.Div(n_out, op.Mul(scale, n_in))
        offset = op.Mul(op.Mul(n_in, 0.5), op.Sub(1.0, adjustment))
        return op.Sub(op.Add(offset, middle), 0.5)  # in this order, as ONNX Runtime rounds
    if mode == "pytorch_half_pixel":
        return op.Where(op.Greater(n_out, 1.0), half, op.Mul(o, 0.0))
    return half


def _between_corners(op: Ops, call: Call, axis: _Axis, o: ir.Value, n_in: ir.Value, n_out: ir.Value) -> ir.Value:
    """The first and the last output lie on the corners of the input, or of the region of interest in it."""
    last, zero = op.Sub(n_in, 1.0), op.Mul(o, 0.0)
    steps = op.Max(op.Sub(n_out, 1.0), op.like(1.0, n_out))
    several = op.Greater(n_out, 1.0)
    if _text(call, "coordinate_transformation_mode", "half_pixel") == "align_corners":
        return op.Where(several, op.Div(op.Mul(o, last), steps), zero)
    count = len(call.get("axes", range(_rank(call))))
    roi = op.Cast(call.inputs[1], to=_FLOAT)
    start = op.Gather(roi, op.Constant(value_int=axis.position))
    end = op.Gather(roi, op.Constant(value_int=count + axis.position))
    along = op.Add(op.Mul(start, last), op.Div(op.Mul(op.Mul(o, op.Sub(end, start)), last), steps))
    centre = op.Add(op.Mul(op.Mul(op.Add(start, end), last), 0.5), zero)
    return op.Where(several, along, centre)


def _taps(op: Ops, call: Call, source: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Returns positions of the inputs that each output reads, and their weights, both (output size, taps)."""
    mode = _text(call, "mode", "nearest")
    if mode == "nearest":
        taps = _round(op, source, _text(call, "nearest_mode", "round_prefer_floor"))
        return taps, op.Add(op.Mul(taps, 0.0), 1.0)
    support = 2 if mode == "cubic" else 1
    stretch = op.Min(scale, op.like(1.0, scale)) if call.get("antialias", 0) else op.like(1.0, scale)
    reach = op.Cast(op.Ceil(op.Div(op.like(float(support), scale), stretch)), to=_INT64)
    offsets = op.Range(op.Sub(1, reach), op.Add(reach, 1), op.Constant(value_int=1))
    taps = op.Add(op.Floor(source), op.Cast(offsets, to=_FLOAT))
    distance = op.Mul(op.Abs(op.Sub(taps, source)), stretch)
    if mode == "cubic":
        return taps, cubic_weights(op, distance, call.get("cubic_coeff_a", -0.75))
    return taps, op.Max(op.Sub(1.0, distance), op.like(0.0, distance))


def _round(op: Ops, source: ir.Value, mode: str) -> ir.Value:
    if mode == "floor":
        return op.Floor(source)
    if mode == "ceil":
        return op.Ceil(source)
    return op.Ceil(op.Sub(source, 0.5)) if mode == "round_prefer_floor" else op.Floor(op.Add(source, 0.5))


def cubic_weights(op: Ops, d: ir.Value, a: float) -> ir.Value:
    """Keys' kernel at distance d ≥ 0: (a+2)d³ − (a+3)d² + 1 up to 1, a(d³ − 5d² + 8d − 4) up to 2, 0 beyond."""
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(d, a + 2), a + 3), d), d), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(d, 5.0), d), 8.0), d), 4.0), a)
    return op.Where(op.LessOrEqual(d, 1.0), near, op.Where(op.Less(d, 2.0), far, op.Mul(d, 0.0)))


def _contract(op: Ops, dy: ir.Value, matrix: ir.Value, axis: int, rank: int) -> ir.Value:
    """Returns Mᵀ applied along the axis."""
    if axis == rank - 1:
        return op.MatMul(dy, matrix) if rank > 1 else op.MatMul(op.Transpose(matrix, perm=[1, 0]), dy)
    if axis == rank - 2:
        return op.MatMul(op.Transpose(matrix, perm=[1, 0]), dy)
    swap: list[Any] = list(range(rank))
    swap[axis], swap[-1] = rank - 1, axis
    return op.Transpose(op.MatMul(op.Transpose(dy, perm=swap), matrix), perm=swap)


RULES: Mapping[str, RuleOrChoice] = {
    "Resize": resize_rule,
}
