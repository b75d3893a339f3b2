"""Starting points and results of the backward passes of the recurrent operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxqat.autodiff.recurrent.cell_activations import Activation
from onnxqat.graph.ops import Ops


@dataclass(frozen=True)
class Cell:
    """One direction of a recurrent operator, time running forward. T steps, batch N, input I, hidden H, gates G.

    Attributes:
        x: inputs, (T, N, I).
        w: weights, (G·H, I).
        r: recurrence weights, (G·H, H).
        bias: both biases one after the other, (2·G·H,), if any.
        h_before: the hidden state before each step, (T, N, H).
        c0: the cell state before the first step, (N, H).
        peepholes: peephole weights, (3·H,), if any.
        mask: which steps are within their sequence, (T, N, 1), if lengths are given.
        dy: gradients of the hidden states, (T, N, H).
        dh_last: gradient of the last hidden state beyond that, (N, H).
        dc_last: gradient of the last cell state, (N, H).
        functions: the activation functions, in the specification's order f, g, h.
        clip: bound of what enters an activation function, if any.
        input_forget: LSTM's forget gate is 1 − input gate.
        linear_before_reset: GRU's reset gate applies after the recurrence weights.
    """

    x: ir.Value
    w: ir.Value
    r: ir.Value
    bias: ir.Value | None
    h_before: ir.Value
    c0: ir.Value
    peepholes: ir.Value | None
    mask: ir.Value | None
    dy: ir.Value
    dh_last: ir.Value
    dc_last: ir.Value
    functions: Sequence[Activation]
    clip: float | None
    input_forget: bool
    linear_before_reset: bool

    def activate(self, op: Ops, number: int, a: ir.Value) -> ir.Value:
        """Applies activation function `number` to a pre-activation."""
        return self.functions[number].apply(op, self._clipped(op, a))

    def slope(self, op: Ops, number: int, a: ir.Value, y: ir.Value) -> ir.Value:
        """Returns its derivative at `a`, where it is `y`: 0 beyond the clip."""
        slope = self.functions[number].slope(op, self._clipped(op, a), y)
        if self.clip is None:
            return slope
        return op.Where(op.Less(op.Abs(a), self.clip), slope, op.like(0.0, slope))

    def _clipped(self, op: Ops, a: ir.Value) -> ir.Value:
        if self.clip is None:
            return a
        return op.Clip(a, op.like(-self.clip, a), op.like(self.clip, a))

    def within(self, op: Ops, mask: ir.Value | None, inside: ir.Value, outside: ir.Value | None = None) -> ir.Value:
        """Returns `inside` at steps within their sequence, elsewhere `outside` (None: 0)."""
        if mask is None:
            return inside
        return op.Where(mask, inside, op.like(0.0, inside) if outside is None else outside)


@dataclass(frozen=True)
class CellGradients:
    """Gradients of one direction.

    Attributes:
        da: of the pre-activations of all gates, (T, N, G·H).
        recurrent: pairs of a gradient (T, N, ·) and the state (T, N, H) that the recurrence weights of those gates multiply.
        dh0: of the first hidden state, (N, H).
        dc0: of the first cell state, (N, H), if there is one.
        dpeepholes: of the peephole weights, (3·H,), if there are any.
    """

    da: ir.Value
    recurrent: Sequence[tuple[ir.Value, ir.Value]]
    dh0: ir.Value
    dc0: ir.Value | None = None
    dpeepholes: ir.Value | None = None


def halves(op: Ops, bias: ir.Value) -> Sequence[ir.Value]:
    """Splits the bias into that of the weights and that of the recurrence weights."""
    return split(op, bias, 2, axis=0)


def split(op: Ops, x: ir.Value, parts: int, axis: int = -1) -> Sequence[ir.Value]:
    """Splits into equal parts."""
    attributes: dict[str, Any] = {"axis": axis} | ({"num_outputs": parts} if op.opset >= 18 else {})
    values = op.many("Split", x, _outputs=parts, **attributes)
    for value in values:
        value.type = x.type or ir.TensorType(ir.DataType.FLOAT)
    return values
