"""Windows of convolution and pooling: their attributes, and automatic padding where only the data says how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.rule import Call
from onnxqat.autodiff.shapes import sizes
from onnxqat.graph.ops import Ops


@dataclass(frozen=True)
class Window:
    """Attributes of a sliding window, all of the length of its rank, `pads` of twice that.

    Attributes:
        kernel: its shape.
        strides: step between two positions.
        dilations: step between two elements.
        pads: padding in front of each axis, then behind each axis.
        automatic: SAME_UPPER or SAME_LOWER, in the place of `pads`; None otherwise.
        ceil: whether an incomplete window at the end counts.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]
    automatic: str | None
    ceil: bool

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def reach(self) -> list[int]:
        """Extent of the dilated kernel."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def window(call: Call, kernel: Sequence[int] | None = None) -> Window:
    """Reads the node's attributes; `kernel` is the weight's shape where the node does not state it."""
    kernel = list(call.get("kernel_shape") or kernel or ())
    ones = [1] * len(kernel)
    mode = call.get("auto_pad", "NOTSET")
    return Window(
        kernel=kernel,
        strides=call.get("strides") or ones,
        dilations=call.get("dilations") or ones,
        pads=(call.get("pads") if mode == "NOTSET" else None) or [0] * (2 * len(kernel)),
        automatic=mode if mode.startswith("SAME") else None,
        ceil=bool(call.get("ceil_mode", 0)),
    )


def spatial(op: Ops, x: ir.Value, rank: int) -> ir.Value:
    """Returns the sizes of the last `rank` axes."""
    return sizes(op, x, list(range(2, 2 + rank)))


def begins_and_ends(op: Ops, x: ir.Value, w: Window) -> tuple[ir.Value, ir.Value]:
    """Returns the padding of `x` in front and at the end, int64 vectors (ONNX Conv specification, auto_pad)."""
    if w.automatic is None:
        return op.ints(w.pads[: w.rank]), op.ints(w.pads[w.rank :])
    size, strides = spatial(op, x, w.rank), op.ints(w.strides)
    outputs = op.Div(op.Add(size, op.ints([stride - 1 for stride in w.strides])), strides)
    covered = op.Add(op.Mul(op.Sub(outputs, op.ints([1])), strides), op.ints(w.reach))
    total = op.Max(op.Sub(covered, size), op.ints([0]))
    small = op.Div(total, op.ints([2]))
    large = op.Sub(total, small)
    return (small, large) if w.automatic == "SAME_UPPER" else (large, small)


def padded(op: Ops, x: ir.Value, begins: ir.Value, ends: ir.Value, fill: float = 0.0) -> ir.Value:
    """Pads the spatial axes of `x`, which follow the first two."""
    none = op.ints([0, 0])
    return op.Pad(x, op.Concat(none, begins, none, ends, axis=0), op.like(fill, x))
