"""Gradients of LSTM, GRU and RNN: backpropagation through time.

The forward kernel keeps no gates. All hidden states are in its output, so the gates of all steps at once are a few matrix
products; only what must go step by step backwards in time is a loop, with one product per step. The weights' gradients are again
products over all steps. Lengths may thus be dynamic. Equations: the operators' definitions in the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from onnxqat.autodiff.recurrent import cell_activations, gru, lstm, rnn
from onnxqat.autodiff.recurrent.cell import Cell, CellGradients
from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import arange, reshape, size, sizes, zeros
from onnxqat.graph.ops import Ops

_LENGTHS, _H0, _C0, _PEEPHOLES = 4, 5, 6, 7


@dataclass(frozen=True)
class _Kind:
    """Properties of one of the three operators: its gates, its activation functions, its backward pass."""

    gates: int
    activations: tuple[str, ...]
    backward: Callable[[Ops, Cell], CellGradients]


_KINDS: Mapping[str, _Kind] = {
    "LSTM": _Kind(4, ("Sigmoid", "Tanh", "Tanh"), lstm.backward),
    "GRU": _Kind(3, ("Sigmoid", "Tanh"), gru.backward),
    "RNN": _Kind(1, ("Tanh",), rnn.backward),
}


def recurrent_rule(node: ir.Node) -> Custom | Expanded | Refused:
    """Batch-first layout, which ONNX Runtime does not run, is rewritten with transposes."""
    unknown = [name for name in _activation_names(node) if name.lower() not in cell_activations.TABLE]
    if unknown:
        return Refused(f"its activation function {unknown[0]} is unknown to the ONNX specification")
    inputs = frozenset({0, 1, 2, 3, _H0, _C0, _PEEPHOLES})
    if "layout" in node.attributes and node.attributes["layout"].as_int() == 1:
        return Expanded(time_first, inputs=inputs)
    return Custom(recurrent_gradient, inputs=inputs)


def time_first(op: Ops, call: Call) -> Sequence[ir.Value]:
    """The same operator on transposed tensors: time is the first axis there, the batch the second."""

    def swapped(index: int) -> ir.Value | None:
        value = call.input(index)
        return None if value is None else op.Transpose(value, perm=[1, 0, 2])

    moved = {0: swapped(0), _H0: swapped(_H0), _C0: swapped(_C0)}
    inputs = [moved.get(i, value) for i, value in enumerate(call.inputs)]
    attributes = {name: attribute.value for name, attribute in call.attributes.items() if name != "layout"}
    y, *last = op.many(call.op_type, *inputs, _outputs=len(call.outputs), **attributes)
    return [op.Transpose(y, perm=[2, 0, 1, 3]), *(op.Transpose(value, perm=[1, 0, 2]) for value in last)]


def recurrent_gradient(op: Ops, call: Call, *upstream: ir.Value | None) -> list[ir.Value | None]:
    """One backward pass per direction; the gradients of X add up, the others are stacked."""
    kind = _KINDS[call.op_type]
    direction = call.attributes["direction"].as_string() if "direction" in call.attributes else "forward"
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    names = list(call.get("activations", kind.activations * len(backwards)))
    functions = cell_activations.chosen(names, call.get("activation_alpha", []), call.get("activation_beta", []))
    found: list[dict[int, ir.Value]] = []
    for number, reverse in enumerate(backwards):
        chosen = functions[number * len(kind.activations) : (number + 1) * len(kind.activations)]
        turn = partial(_turn, op, call) if reverse else _as_is
        cell = _cell(op, call, upstream, number, chosen, turn)
        found.append(_input_gradients(op, cell, kind.backward(op, cell), turn))
    results: list[ir.Value | None] = [None] * len(call.inputs)
    for index in call.wanted:
        parts = [gradients[index] for gradients in found]
        if index == 0:
            results[0] = parts[0] if len(parts) == 1 else op.Add(*parts)
        else:
            parts = [op.Unsqueeze(part, op.ints([0])) for part in parts]
            results[index] = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
    return results


def _activation_names(node: ir.Node) -> Sequence[str]:
    return node.attributes["activations"].as_strings() if "activations" in node.attributes else []


def _as_is(x: ir.Value) -> ir.Value:
    return x


def _turn(op: Ops, call: Call, x: ir.Value) -> ir.Value:
    """Reverses time, within each sequence's length where lengths are given."""
    lengths = call.input(_LENGTHS)
    if lengths is None:
        return op.Slice(x, op.ints([-1]), op.ints([-(2**62)]), op.ints([0]), op.ints([-1]))
    positive = op.Max(op.Cast(lengths, to=ir.DataType.INT64), op.ints([1]))  # ReverseSequence fails at 0
    return op.ReverseSequence(x, positive, batch_axis=1, time_axis=0)


def _cell(
    op: Ops,
    call: Call,
    upstream: Sequence[ir.Value | None],
    number: int,
    functions: Sequence[cell_activations.Activation],
    turn: Callable[[ir.Value], ir.Value],
) -> Cell:
    """Collects what concerns one direction, with time running forward."""
    x, dy = call.inputs[0], upstream[0]
    assert x is not None
    dtype = x.dtype or ir.DataType.FLOAT
    pick = op.Constant(value_int=number)
    y = turn(op.Gather(call.outputs[0], pick, axis=1))

    def part(index: int) -> ir.Value | None:
        value = call.input(index)
        return None if value is None else op.Gather(value, pick, axis=0)

    def state(value: ir.Value | None) -> ir.Value:
        return zeros(op, sizes(op, y, [1, 2]), dtype) if value is None else value

    def last(index: int) -> ir.Value:
        value = upstream[index] if index < len(upstream) else None
        return state(None if value is None else op.Gather(value, pick, axis=0))

    mask = _mask(op, call, y)
    dy = zeros(op, op.Shape(y), dtype) if dy is None else turn(op.Gather(dy, pick, axis=1))
    w, r = part(1), part(2)
    assert w is not None
    assert r is not None
    return Cell(
        x=turn(x),
        w=w,
        r=r,
        bias=part(3),
        h_before=_before(op, state(part(_H0)), y),
        c0=state(part(_C0)),
        peepholes=part(_PEEPHOLES),
        mask=mask,
        dy=dy if mask is None else op.Where(mask, dy, op.like(0.0, dy)),
        dh_last=last(1),
        dc_last=last(2),
        functions=functions,
        clip=call.get("clip"),
        input_forget=bool(call.get("input_forget", 0)),
        linear_before_reset=bool(call.get("linear_before_reset", 0)),
    )


def _before(op: Ops, h0: ir.Value, y: ir.Value) -> ir.Value:
    """Returns the hidden state before each step."""
    earlier = op.Slice(y, op.ints([0]), op.ints([-1]), op.ints([0]))
    return op.Concat(op.Unsqueeze(h0, op.ints([0])), earlier, axis=0)


def _mask(op: Ops, call: Call, y: ir.Value) -> ir.Value | None:
    """Returns which steps are within their sequence, (time, batch, 1)."""
    lengths = call.input(_LENGTHS)
    if lengths is None:
        return None
    steps = reshape(op, arange(op, size(op, y, 0)), [-1, 1, 1])
    return op.Less(steps, reshape(op, op.Cast(lengths, to=ir.DataType.INT64), [1, -1, 1]))


def _input_gradients(
    op: Ops, cell: Cell, found: CellGradients, turn: Callable[[ir.Value], ir.Value]
) -> dict[int, ir.Value]:
    """Returns the gradients of one direction's inputs by index, from those of its pre-activations."""
    recurrent = [_product(op, da, state) for da, state in found.recurrent]
    sums = [op.reduce("Sum", da, [0, 1], keepdims=False) for da, _ in found.recurrent]
    bias = [op.reduce("Sum", found.da, [0, 1], keepdims=False), *sums]
    gradients = {
        0: turn(op.MatMul(found.da, cell.w)),
        1: _product(op, found.da, cell.x),
        2: recurrent[0] if len(recurrent) == 1 else op.Concat(*recurrent, axis=0),
        3: op.Concat(*bias, axis=0),
        _H0: found.dh0,
    }
    gradients |= {} if found.dc0 is None else {_C0: found.dc0}
    return gradients | ({} if found.dpeepholes is None else {_PEEPHOLES: found.dpeepholes})


def _product(op: Ops, da: ir.Value, state: ir.Value) -> ir.Value:
    """Returns Σ over time and batch of daᵀ·state."""
    flat = [op.Reshape(v, op.Concat(op.ints([-1]), sizes(op, v, [2]), axis=0)) for v in (da, state)]
    return op.MatMul(op.Transpose(flat[0], perm=[1, 0]), flat[1])


RULES: Mapping[str, RuleOrChoice] = dict.fromkeys(_KINDS, recurrent_rule)
