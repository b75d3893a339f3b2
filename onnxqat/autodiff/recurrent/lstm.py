"""Backward pass of LSTM, with the gates in ONNX's order: input i, output o, forget f, cell g.

i = σ(aᵢ + pᵢ·c₋)   f = σ(a_f + p_f·c₋)   g = τ(a_g)   c = f·c₋ + i·g   o = σ(aₒ + pₒ·c)   h = o·τ(c)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.recurrent.cell import Cell, CellGradients, split
from onnxqat.autodiff.recurrent.rnn import pre_activations
from onnxqat.autodiff.recurrent.scan import Values, scan
from onnxqat.graph.ops import Ops

_F, _G, _H = 0, 1, 2  # activation functions of the gates, the cell input and the cell output


@dataclass(frozen=True)
class _Factors:
    """Factors by which a step multiplies gradients: of c to those of aᵢ, a_f, a_g and c₋, of h to those of aₒ and c."""

    i: ir.Value
    f: ir.Value
    g: ir.Value
    carry: ir.Value
    o: ir.Value
    c: ir.Value


def backward(op: Ops, cell: Cell) -> CellGradients:
    """Finds the cell states, forward; then goes backward with the gradients of h and c."""
    a = pre_activations(op, cell)
    peepholes = [None] * 3 if cell.peepholes is None else split(op, cell.peepholes, 3)
    c = _cell_states(op, cell, peepholes, a)
    earlier = op.Slice(c, op.ints([0]), op.ints([-1]), op.ints([0]))
    c_before = op.Concat(op.Unsqueeze(cell.c0, op.ints([0])), earlier, axis=0)
    factors = _factors(op, cell, peepholes, a, c_before, c)
    masks = [] if cell.mask is None else [cell.mask]
    sequences = [cell.dy, factors.i, factors.o, factors.f, factors.g, factors.carry, factors.c, *masks]

    def step(op: Ops, states: Values, now: Values) -> tuple[Values, Values]:
        return _backward(op, cell, peepholes, states, now)

    (dh0, dc0), (da,) = scan(op, step, [cell.dh_last, cell.dc_last], sequences, backwards=True)
    return CellGradients(da, [(da, cell.h_before)], dh0, dc0, _peephole_gradient(op, cell, da, c_before, c))


def _peeping(op: Ops, a: ir.Value, peephole: ir.Value | None, c: ir.Value) -> ir.Value:
    return a if peephole is None else op.Add(a, op.Mul(peephole, c))


def _cell_states(op: Ops, cell: Cell, peepholes: Sequence[ir.Value | None], a: ir.Value) -> ir.Value:
    """The cell state after each step; without peepholes, gates are known beforehand, those of all steps at once."""

    def with_peepholes(op: Ops, states: Values, now: Values) -> tuple[Values, Values]:
        f, added = _gates(op, cell, peepholes, now[0], states[0])
        after = op.Add(op.Mul(f, states[0]), added)
        return [after], [after]

    def without(op: Ops, states: Values, now: Values) -> tuple[Values, Values]:
        after = op.Add(op.Mul(now[0], states[0]), now[1])
        return [after], [after]

    if cell.peepholes is None:
        _, (c,) = scan(op, without, [cell.c0], _gates(op, cell, peepholes, a, cell.c0))
    else:
        _, (c,) = scan(op, with_peepholes, [cell.c0], [a])
    return c


def _gates(
    op: Ops, cell: Cell, peepholes: Sequence[ir.Value | None], a: ir.Value, c: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The forget gate, and what the input gate lets in."""
    a_i, _, a_f, a_g = split(op, a, 4)
    i = cell.activate(op, _F, _peeping(op, a_i, peepholes[0], c))
    f = op.Sub(1.0, i) if cell.input_forget else cell.activate(op, _F, _peeping(op, a_f, peepholes[2], c))
    return f, op.Mul(i, cell.activate(op, _G, a_g))


def _factors(
    op: Ops, cell: Cell, peepholes: Sequence[ir.Value | None], a: ir.Value, c_before: ir.Value, c: ir.Value
) -> _Factors:
    """Derivatives of all steps at once. A coupled forget gate 1 − i adds −c₋ to what i multiplies."""
    a_i, a_o, a_f, a_g = split(op, a, 4)
    a_i, a_o = _peeping(op, a_i, peepholes[0], c_before), _peeping(op, a_o, peepholes[1], c)
    a_f = _peeping(op, a_f, peepholes[2], c_before)
    i, o, g, out = (
        cell.activate(op, _F, a_i),
        cell.activate(op, _F, a_o),
        cell.activate(op, _G, a_g),
        cell.activate(op, _H, c),
    )
    if cell.input_forget:
        f, d_i, d_f = op.Sub(1.0, i), op.Sub(g, c_before), op.Mul(c_before, 0.0)
    else:
        f, d_i = cell.activate(op, _F, a_f), g
        d_f = op.Mul(c_before, cell.slope(op, _F, a_f, f))
    return _Factors(
        i=op.Mul(d_i, cell.slope(op, _F, a_i, i)),
        f=d_f,
        g=op.Mul(i, cell.slope(op, _G, a_g, g)),
        carry=f,
        o=op.Mul(out, cell.slope(op, _F, a_o, o)),
        c=op.Mul(o, cell.slope(op, _H, c, out)),
    )


def _backward(
    op: Ops, cell: Cell, peepholes: Sequence[ir.Value | None], states: Values, now: Values
) -> tuple[Values, Values]:
    (dh_after, dc_after), (dy, k_i, k_o, k_f, k_g, carry, k_c, *masks) = states, now
    mask = masks[0] if masks else None
    dh = op.Add(dy, dh_after)
    da_o = op.Mul(dh, k_o)
    dc = op.Add(dc_after, op.Mul(dh, k_c))
    dc = dc if peepholes[1] is None else op.Add(dc, op.Mul(da_o, peepholes[1]))
    da_i, da_f = op.Mul(dc, k_i), op.Mul(dc, k_f)
    before = op.Mul(dc, carry)
    for da, peephole in ((da_i, peepholes[0]), (da_f, peepholes[2])):
        before = before if peephole is None else op.Add(before, op.Mul(da, peephole))
    da = op.Concat(da_i, da_o, da_f, op.Mul(dc, k_g), axis=-1)
    dh_before = cell.within(op, mask, op.MatMul(da, cell.r), dh_after)
    return [dh_before, cell.within(op, mask, before, dc_after)], [cell.within(op, mask, da)]


def _peephole_gradient(op: Ops, cell: Cell, da: ir.Value, c_before: ir.Value, c: ir.Value) -> ir.Value | None:
    if cell.peepholes is None:
        return None
    da_i, da_o, da_f, _ = split(op, da, 4)
    products = [op.Mul(da_i, c_before), op.Mul(da_o, c), op.Mul(da_f, c_before)]
    return op.Concat(*(op.reduce("Sum", product, [0, 1], keepdims=False) for product in products), axis=0)
