"""Shape arithmetic that gradient formulas of several families write."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxqat.graph.ops import Ops


def sizes(op: Ops, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Returns the sizes of `x` along `axes`, an int64 vector."""
    return op.Gather(op.Shape(x), op.ints(axes))


def size(op: Ops, x: ir.Value, axis: int) -> ir.Value:
    """Returns the size of `x` along `axis`, an int64 scalar."""
    return op.Squeeze(sizes(op, x, [axis]), op.ints([0]))


def reshape(op: Ops, x: ir.Value, *parts: Sequence[int] | ir.Value) -> ir.Value:
    """Reshapes to the concatenation of `parts`; 0 keeps the size at that place, one −1 takes what is left."""
    if len(parts) == 1:
        return op.Reshape(x, op.ints(parts[0]))
    return op.Reshape(x, op.Concat(*(op.ints(part) for part in parts), axis=0))


def zeros(op: Ops, shape: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Returns a tensor of zeros."""
    return op.ConstantOfShape(shape, value=ir.tensor([0], dtype=dtype))


def averaged(op: Ops, dy: ir.Value, x: ir.Value) -> ir.Value:
    """Divides the gradient of means by how many elements of `x` each is made of."""
    many, few = (op.Cast(op.Size(value), to=ir.DataType.FLOAT) for value in (x, dy))
    return op.Mul(dy, op.Cast(op.Div(few, many), to=dy.dtype or ir.DataType.FLOAT))


def arange(op: Ops, stop: ir.Value) -> ir.Value:
    """Returns 0, 1, …, stop − 1 as an int64 vector."""
    return op.Range(op.Constant(value_int=0), stop, op.Constant(value_int=1))


def added_up(op: Ops, dy: ir.Value, numbers: ir.Value, x: ir.Value) -> ir.Value:
    """Adds up the gradient of each element of `x`, whose number stands in `numbers` wherever it was copied."""
    row = op.Concat(op.ints([1]), op.Reshape(op.Size(x), op.ints([1])), axis=0)
    numbers, dy = (op.Flatten(value, axis=0) for value in (numbers, dy))  # unlike Reshape it takes empty tensors
    (total,) = op.kernel("GatherElementsGrad", dy, row, numbers, axis=1)
    return op.Reshape(total, op.Shape(x))
