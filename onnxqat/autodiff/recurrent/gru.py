"""Backward pass of GRU, with the gates in ONNX's order: update z, reset r, hidden n.

    z = σ(a_z)   r = σ(a_r)   n = τ(aₙ)   h = (1 − z)·n + z·h₋

aₙ = x·Wₙᵀ + (r·h₋)·Rₙᵀ + b, or with linear_before_reset x·Wₙᵀ + w + r·q, where q = h₋·Rₙᵀ + b.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.autodiff.recurrent.cell import Cell, CellGradients, halves, split
from onnxqat.autodiff.recurrent.scan import Values, scan
from onnxqat.graph.ops import Ops

_F, _G = 0, 1  # activation functions of the gates and of the hidden state


def backward(op: Ops, cell: Cell) -> CellGradients:
    """Finds the gates of all steps at once, then goes backward with the gradient of h."""
    h, linear = cell.h_before, cell.linear_before_reset
    r_gates, r_hidden = op.many("Split", cell.r, op.Concat(*_two_and_one(op, h), axis=0), _outputs=2, axis=0)
    r_gates.type = r_hidden.type = ir.TensorType(ir.DataType.FLOAT)
    x_z, x_r, x_n = split(op, op.MatMul(cell.x, op.Transpose(cell.w, perm=[1, 0])), 3)
    h_z, h_r = split(op, op.MatMul(h, op.Transpose(r_gates, perm=[1, 0])), 2)
    w_z, w_r, w_n, b_z, b_r, b_n = _biases(op, cell)
    a_z, a_r = op.Add(op.Add(x_z, h_z), op.Add(w_z, b_z)), op.Add(op.Add(x_r, h_r), op.Add(w_r, b_r))
    z, r = cell.activate(op, _F, a_z), cell.activate(op, _F, a_r)
    reset = op.Mul(r, h)
    q = op.Add(op.MatMul(h if linear else reset, op.Transpose(r_hidden, perm=[1, 0])), b_n)
    a_n = op.Add(op.Add(x_n, w_n), op.Mul(r, q) if linear else q)
    n = cell.activate(op, _G, a_n)
    k_z = op.Mul(op.Sub(h, n), cell.slope(op, _F, a_z, z))
    k_n = op.Mul(op.Sub(1.0, z), cell.slope(op, _G, a_n, n))
    k_r = op.Mul(q if linear else h, cell.slope(op, _F, a_r, r))
    masks = [] if cell.mask is None else [cell.mask]

    def step(op: Ops, states: Values, now: Values) -> tuple[Values, Values]:
        (dh_after,), (dy, k_z, k_n, k_r, z, r, *mask) = states, now
        dh = op.Add(dy, dh_after)
        da_z, da_n = op.Mul(dh, k_z), op.Mul(dh, k_n)
        through = op.Mul(da_n, r) if linear else op.MatMul(da_n, r_hidden)
        da_r = op.Mul(da_n if linear else through, k_r)
        before = op.Add(op.Mul(dh, z), op.MatMul(through, r_hidden) if linear else op.Mul(through, r))
        before = op.Add(before, op.MatMul(op.Concat(da_z, da_r, axis=-1), r_gates))
        da = op.Concat(da_z, da_r, da_n, axis=-1)
        inside = mask[0] if mask else None
        return [cell.within(op, inside, before, dh_after)], [cell.within(op, inside, da)]

    (dh0,), (da,) = scan(op, step, [cell.dh_last], [cell.dy, k_z, k_n, k_r, z, r, *masks], backwards=True)
    da_z, da_r, da_n = split(op, da, 3)
    gates = op.Concat(da_z, da_r, axis=-1)
    hidden = (op.Mul(da_n, r), h) if linear else (da_n, reset)
    return CellGradients(da, [(gates, h), hidden], dh0)


def _two_and_one(op: Ops, h: ir.Value) -> tuple[ir.Value, ir.Value]:
    hidden = op.Gather(op.Shape(h), op.ints([2]))
    return op.Mul(hidden, op.ints([2])), hidden


def _biases(op: Ops, cell: Cell) -> list[ir.Value]:
    """Returns the six parts of the bias, zeros where there is none."""
    if cell.bias is None:
        return [op.Constant(value_float=0.0)] * 6
    return [part for half in halves(op, cell.bias) for part in split(op, half, 3)]
