"""Backward pass of RNN: h = f(x·Wᵀ + h₋·Rᵀ + b)."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.autodiff.recurrent.cell import Cell, CellGradients, halves
from onnxqat.autodiff.recurrent.scan import Values, scan
from onnxqat.graph.ops import Ops


def backward(op: Ops, cell: Cell) -> CellGradients:
    """Computes da = (dy + dh)·f′, and for the step before dh = da·R."""
    a = pre_activations(op, cell)
    slope = cell.slope(op, 0, a, cell.activate(op, 0, a))

    def step(op: Ops, states: Values, now: Values) -> tuple[Values, Values]:
        (dh,), (dy, slope, *mask) = states, now
        da = op.Mul(op.Add(dy, dh), slope)
        before = cell.within(op, mask[0] if mask else None, op.MatMul(da, cell.r), dh)
        return [before], [cell.within(op, mask[0] if mask else None, da)]

    masks = [] if cell.mask is None else [cell.mask]
    (dh0,), (da,) = scan(op, step, [cell.dh_last], [cell.dy, slope, *masks], backwards=True)
    return CellGradients(da, [(da, cell.h_before)], dh0)


def pre_activations(op: Ops, cell: Cell) -> ir.Value:
    """Returns x·Wᵀ + h₋·Rᵀ + b of all steps and gates, (T, N, G·H)."""
    a = op.Add(
        op.MatMul(cell.x, op.Transpose(cell.w, perm=[1, 0])),
        op.MatMul(cell.h_before, op.Transpose(cell.r, perm=[1, 0])),
    )
    return a if cell.bias is None else op.Add(a, op.Add(*halves(op, cell.bias)))
