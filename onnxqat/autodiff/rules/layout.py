"""Gradients of operators that move, drop or repeat elements, from their definitions in the ONNX specification.

Each is linear in x, so that the gradient is the transposed map of dy: elements go back to where they came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import arange, reshape, size, sizes, zeros
from onnxqat.graph.ops import Ops

_FIRST = frozenset({0})


def _x(call: Call) -> ir.Value:
    x = call.inputs[0]
    assert x is not None
    return x


def identity_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Identity: dx = dy."""
    return dy


def cast_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Cast, CastLike: the gradient in the type of x."""
    dtype = _x(call).dtype
    return op.CastLike(dy, _x(call)) if dtype is None else op.Cast(dy, to=dtype)


def reshape_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Reshape and its like: the gradient in the shape of x."""
    return op.Reshape(dy, op.Shape(_x(call)), allowzero=1)


def transpose_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Transpose: the inverse permutation; without one the axes are reversed, and reversed again."""
    perm = call.get("perm")
    return op.Transpose(dy, **({} if perm is None else {"perm": [perm.index(axis) for axis in range(len(perm))]}))


def expand_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Expand: dx = Σ dy over the axes that were repeated."""
    return op.sum_to(dy, _x(call), call.outputs[0])


def tile_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Tile: an axis that was repeated r times is (r, size) in dy; dx sums over all r."""
    x, repeats = _x(call), call.inputs[1]
    pairs = op.Concat(op.Unsqueeze(repeats, op.ints([1])), op.Unsqueeze(op.Shape(x), op.ints([1])), axis=1)
    apart = op.Reshape(dy, op.Reshape(pairs, op.ints([-1])))
    last = op.Mul(op.Size(repeats), op.Constant(value_int=2))
    return op.reduce("Sum", apart, op.Range(op.Constant(value_int=0), last, op.Constant(value_int=2)), keepdims=False)


def concat_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value]:
    """Concat: every operand gets its part of dy."""
    axis, operands = call.get("axis"), [value for value in call.inputs if value is not None]
    lengths = op.Concat(*(sizes(op, x, [axis]) for x in operands), axis=0)
    parts = op.many("Split", dy, lengths, axis=axis, _outputs=len(operands))
    for part in parts:
        part.type = dy.type
    return parts


def split_gradient(op: Ops, call: Call, *upstream: ir.Value | None) -> ir.Value:
    """Split: the parts' gradients one after the other, zeros for a part that the loss does not read."""
    parts = [
        zeros(op, op.Shape(y), _dtype(y)) if dy is None else dy for y, dy in zip(call.outputs, upstream, strict=True)
    ]
    return op.Concat(*parts, axis=call.get("axis", 0))


def depth_to_space_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """DCR mode is the inverse of SpaceToDepth; CRD orders the depth as (c, i, j) where SpaceToDepth has (i, j, c)."""
    x, block = _x(call), call.get("blocksize")
    if call.get("mode", b"DCR") in (b"DCR", "DCR"):
        return op.SpaceToDepth(dy, blocksize=block)
    plane = sizes(op, x, [2, 3])
    apart = reshape(op, op.SpaceToDepth(dy, blocksize=block), [0, block * block, -1], plane)
    return op.Reshape(op.Transpose(apart, perm=[0, 2, 1, 3, 4]), op.Shape(x))


def space_to_depth_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """SpaceToDepth is the inverse of DepthToSpace in DCR mode."""
    return op.DepthToSpace(dy, blocksize=call.get("blocksize"), mode="DCR")


def center_crop_pad_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Crop and pad both put ⌊difference/2⌋ in front: what was cropped is padded with zeros, and the reverse."""
    x, axes = _x(call), call.get("axes")
    if axes is None:
        return op.CenterCropPad(dy, op.Shape(x))
    return op.CenterCropPad(dy, sizes(op, x, axes), axes=axes)


def reverse_sequence_rule(node: ir.Node) -> Custom | Expanded:
    """Returns the rule of ReverseSequence; lengths of 0 become 1, as ONNX Runtime leaves such rows uninitialized."""
    lengths = node.inputs[1]
    assert lengths is not None
    known = ir.convenience.get_const_tensor(lengths)
    producer = lengths.producer()
    if (known is not None and known.numpy().min(initial=1) > 0) or (producer is not None and producer.op_type == "Max"):
        return Custom(reverse_sequence_gradient, inputs=_FIRST)
    return Expanded(reverse_sequence_of_positive_length, inputs=_FIRST)


def reverse_sequence_of_positive_length(op: Ops, call: Call) -> ir.Value:
    """Writes ReverseSequence with lengths max(length, 1)."""
    return op.ReverseSequence(_x(call), op.Max(call.inputs[1], op.ints([1])), **_sequence_axes(call))


def reverse_sequence_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Reversing the same stretch again restores the order."""
    return op.ReverseSequence(dy, call.inputs[1], **_sequence_axes(call))


def _sequence_axes(call: Call) -> dict[str, int]:
    return {"batch_axis": call.get("batch_axis", 1), "time_axis": call.get("time_axis", 0)}


def trilu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Trilu: dx = dy in the triangle that was kept, 0 elsewhere."""
    k = call.input(1)
    return op.Trilu(dy, *([] if k is None else [k]), upper=call.get("upper", 1))


def cumsum_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """CumSum: x_i is in every later sum, so dx is the cumulative sum of dy from the other end."""
    exclusive, reverse = call.get("exclusive", 0), call.get("reverse", 0)
    return op.CumSum(dy, call.inputs[1], exclusive=exclusive, reverse=1 - reverse)


def compress_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of Compress; along an axis it needs the rank of x."""
    x = node.inputs[0]
    if "axis" in node.attributes and (x is None or x.shape is None):
        return Refused("the rank of its input is not known; give the input a shape")
    return Custom(compress_gradient, inputs=_FIRST)


def compress_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """The k-th slice of dy goes to where the condition is true for the k-th time."""
    x, axis = _x(call), call.get("axis")
    chosen = op.Squeeze(op.NonZero(call.inputs[1]), op.ints([0]))
    if axis is None:
        flat = zeros(op, op.Shape(reshape(op, x, [-1])), _dtype(x))
        return op.Reshape(op.ScatterElements(flat, chosen, dy), op.Shape(x))
    rank = call.rank()
    assert rank is not None
    ahead = [1] * (rank - 1 - axis % rank)
    indices = op.Expand(reshape(op, chosen, [-1, *ahead]), op.Shape(dy))
    return op.ScatterElements(zeros(op, op.Shape(x), _dtype(x)), indices, dy, axis=axis)


def col2im_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of Col2Im; its one-hot kernels need to know how many axes the image has."""
    block = node.inputs[2]
    if block is None or block.shape is None or not isinstance(block.shape[0], int):
        return Refused("the number of the image's axes is not known; give its block shape a shape")
    return Custom(col2im_gradient, inputs=_FIRST)


def col2im_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Col2Im adds columns into an image; the gradient cuts the columns out: a convolution with one-hot kernels."""
    x, block = _x(call), call.inputs[2]
    assert block is not None
    axes = block.shape[0] if block.shape is not None else None
    assert isinstance(axes, int)
    count = op.ReduceProd(block, keepdims=1)
    kernels = op.EyeLike(zeros(op, op.Concat(count, count, axis=0), _dtype(dy)))
    columns = op.Conv(
        reshape(op, dy, [-1, 1], sizes(op, dy, range(2, 2 + axes))),
        reshape(op, kernels, [-1, 1], block),
        dilations=call.get("dilations", [1] * axes),
        pads=call.get("pads", [0] * 2 * axes),
        strides=call.get("strides", [1] * axes),
    )
    return op.Reshape(columns, op.Shape(x))


def one_hot_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """OneHot, y is `on` at the indices and `off` elsewhere, values = [off, on]: each gets Σ dy over its elements."""
    indices, depth, _ = call.inputs
    marks = op.ConstantOfShape(op.ints([2]), value=ir.tensor([0], dtype=_dtype(dy)))
    marks = op.ScatterElements(marks, op.ints([1]), reshape(op, op.like(1.0, dy), [1]))
    hot = op.OneHot(indices, depth, marks, axis=call.get("axis", -1))
    on = op.reduce("Sum", op.Mul(dy, hot), None, keepdims=False)
    total = op.reduce("Sum", dy, None, keepdims=False)
    return [None, None, op.Concat(reshape(op, op.Sub(total, on), [1]), reshape(op, on, [1]), axis=0)]


def range_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Range, y_i = start + i·delta: dstart = Σ dy_i, ddelta = Σ i·dy_i; `limit` only says how many there are."""
    start, _, delta = call.inputs
    assert start is not None
    assert delta is not None
    position = op.Cast(arange(op, size(op, dy, 0)), to=_dtype(dy))
    dstart = op.Reshape(op.reduce("Sum", dy, None, keepdims=False), op.Shape(start))
    ddelta = op.Reshape(op.reduce("Sum", op.Mul(dy, position), None, keepdims=False), op.Shape(delta))
    return [dstart, None, ddelta]


def max_unpool_rule(node: ir.Node) -> Custom | Refused:
    """Returns the rule of MaxUnpool: where windows overlap, ONNX leaves open which of several x an element gets."""
    kernel = node.attributes["kernel_shape"].as_ints()
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else [1] * len(kernel)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return Refused("it names its output's shape, and ONNX Runtime takes the indices for ones into that shape")
    if any(stride < side for stride, side in zip(strides, kernel, strict=True)):
        return Refused("its windows overlap, so that which element wins is not defined")
    return Custom(max_unpool_gradient, inputs=_FIRST)


def max_unpool_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """MaxUnpool, y[indices] = x over the flattened tensors: dx = dy[indices]."""
    return op.Gather(reshape(op, dy, [-1]), call.inputs[1])


def _dtype(x: ir.Value) -> ir.DataType:
    return x.dtype or ir.DataType.FLOAT


RULES: Mapping[str, RuleOrChoice] = {
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze", "Unsqueeze"], Custom(reshape_gradient, inputs=_FIRST)),
    "Cast": Custom(cast_gradient),
    "Concat": Custom(concat_gradient),
    "Expand": Custom(expand_gradient, inputs=_FIRST),
    "Identity": Custom(identity_gradient),
    "Split": Custom(split_gradient, inputs=_FIRST),
    "Tile": Custom(tile_gradient, inputs=_FIRST),
    "Transpose": Custom(transpose_gradient),
    "DepthToSpace": Custom(depth_to_space_gradient),
    "SpaceToDepth": Custom(space_to_depth_gradient),
    "CenterCropPad": Custom(center_crop_pad_gradient),
    "ReverseSequence": reverse_sequence_rule,
    "Trilu": Custom(trilu_gradient),
    "CumSum": Custom(cumsum_gradient),
    "Compress": compress_rule,
    "Col2Im": col2im_rule,
    "OneHot": Custom(one_hot_gradient, inputs=frozenset({2}), steering=frozenset({0, 1})),
    "Range": Custom(range_gradient, inputs=frozenset({0, 2}), steering=frozenset({1})),
    "CastLike": Custom(cast_gradient, inputs=_FIRST, steering=frozenset({1})),
    "MaxUnpool": max_unpool_rule,
}
