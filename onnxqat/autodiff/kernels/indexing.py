"""Backward kernels of operators that copy elements: each gradient is added up where its element came from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Formula
from onnxqat.autodiff.shapes import added_up, reshape, zeros
from onnxqat.graph.ops import Ops


def gather_elements_grad(op: Ops, call: Call) -> ir.Value:
    """(dy, shape of x, indices): adds dy to zeros at the indices along `axis`."""
    dy, shape, indices = (call.required(i) for i in range(3))
    blank = zeros(op, shape, dy.dtype or ir.DataType.FLOAT)
    return op.ScatterElements(blank, indices, dy, axis=call.get("axis", 0), reduction="add")


def gather_grad(op: Ops, call: Call) -> ir.Value:
    """(shape of x, indices, dy): adds slices of dy, x seen as (before, axis, after), so that each is a row of ScatterND's."""
    shape, indices, dy = (call.required(i) for i in range(3))
    axis = op.ints([call.get("axis", 0)])
    rank = op.Shape(shape)
    place = op.Where(op.Less(axis, op.ints([0])), op.Add(axis, rank), axis)
    sides = (op.Slice(shape, op.ints([0]), place), op.Slice(shape, op.Add(place, op.ints([1])), rank))
    before, after = (op.ReduceProd(op.Concat(op.ints([1]), side, axis=0), keepdims=1) for side in sides)
    size, count = op.Gather(shape, place), op.Reshape(op.Size(indices), op.ints([1]))
    rows = op.Transpose(reshape(op, dy, before, count, after), perm=[1, 0, 2])
    blank = zeros(op, op.Concat(size, before, after, axis=0), dy.dtype or ir.DataType.FLOAT)
    numbers = op.Cast(reshape(op, indices, count, [1]), to=ir.DataType.INT64)
    total = op.ScatterND(blank, numbers, rows, reduction="add")
    return op.Reshape(op.Transpose(total, perm=[1, 0, 2]), shape)


def max_pool_grad(op: Ops, call: Call) -> ir.Value:
    """(dy, indices, x): adds dy up at the maxima of the windows, whose numbers in x the indices are."""
    dy, indices, x = (call.required(i) for i in range(3))
    return added_up(op, dy, indices, x)


BODIES: Mapping[str, Formula] = {
    "GatherElementsGrad": gather_elements_grad,
    "GatherGrad": gather_grad,
    "MaxPoolGrad": max_pool_grad,
}
