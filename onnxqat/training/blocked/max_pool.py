"""Maximum pooling of blocked data, and its gradient by comparison.

The ordinary kernel that also says where maxima are branches for each element, and takes twenty times as long as the blocked one,
which does not say it. Here the gradient goes to the first maximum of each window all the same: of its first row whose maximum
is the window's, to the first element that is the row's. Rows and columns of windows follow one another, so that each is a
comparison of whole planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.rule import Call
from onnxqat.autodiff.shapes import reshape
from onnxqat.autodiff.windows import window
from onnxqat.graph.ops import BLOCKED, KERNELS, Ops
from onnxqat.training.blocked.convolution import Pair

_GRADIENT = "MaxPoolGrad"


@dataclass(frozen=True)
class Pooling:
    """Geometry of a two-dimensional maximum pooling.

    Attributes:
        kernel: height and width of the window.
        strides: along both axes.
        pads: top, left, bottom, right.
        size: height and width of the data.
    """

    kernel: Pair
    strides: Pair
    pads: tuple[int, int, int, int]
    size: Pair

    @property
    def result(self) -> Pair:
        """Height and width of the result."""
        height, width = (
            (self.size[axis] + self.pads[axis] + self.pads[axis + 2] - self.kernel[axis]) // self.strides[axis] + 1
            for axis in (0, 1)
        )
        return height, width

    @property
    def attributes(self) -> dict[str, Sequence[int]]:
        """Attributes of the blocked operator."""
        return {"kernel_shape": self.kernel, "strides": self.strides, "pads": self.pads}


def pooling_of(node: ir.Node, size: Pair | None) -> Pooling | None:
    """The geometry of a node that can be blocked, gradient included; None if it is none."""
    if node.op_type != "MaxPool" or node.domain or size is None:
        return None
    w = window(Call(node.op_type, tuple(node.inputs), (), node.attributes, 0))
    if w.rank != 2 or w.automatic or w.ceil or set(w.dilations) != {1} or not _only_for_gradient(node):
        return None
    (k0, k1), (s0, s1), (top, left, bottom, right) = w.kernel, w.strides, w.pads
    found = Pooling((k0, k1), (s0, s1), (top, left, bottom, right), size)
    whole = all(
        length % stride == 0 and stride <= reach
        for length, stride, reach in zip(size, w.strides, w.kernel, strict=True)
    )
    return found if whole and min(found.result) > 0 else None


def is_gradient(node: ir.Node) -> bool:
    """Whether the node is the gradient of a maximum pooling."""
    return (node.domain, node.op_type) == (KERNELS, _GRADIENT)


def _only_for_gradient(node: ir.Node) -> bool:
    """Whether only the gradient reads where the maxima are."""
    places = list(node.outputs)[1:]
    return all(not value.is_graph_output() and all(is_gradient(use.node) for use in value.uses()) for value in places)


def by_comparison(
    op: Ops, dy: ir.Value, x: ir.Value, y: ir.Value, pool: Pooling, channels: int, block: int
) -> ir.Value:
    """Gradient of the data; all values are blocked."""
    (height, width), (_, columns) = pool.size, pool.result
    along_rows = {"kernel_shape": (1, pool.kernel[1]), "strides": (1, pool.strides[1])}
    rows = op.one("MaxPool", x, _domain=BLOCKED, pads=(0, pool.pads[1], 0, pool.pads[3]), **along_rows)
    x, rows, y, dy = (
        reshape(op, value, [-1, *size, block])
        for value, size in ((x, pool.size), (rows, (height, columns)), (y, pool.result), (dy, pool.result))
    )
    of_rows = reshape(op, _to_first(op, dy, rows, y, pool, 0), [-1, height, columns, block])
    return reshape(op, _to_first(op, of_rows, x, rows, pool, 1), [-1, channels, height, width])


def _to_first(op: Ops, dy: ir.Value, x: ir.Value, y: ir.Value, pool: Pooling, along: int) -> ir.Value:
    """Gradient of x [·, H, W, block], of which y are maxima along one of the two axes, each the first of its window that is."""
    axis, stride, before = along + 1, pool.strides[along], pool.pads[along]
    length, count = pool.size[along] // stride, pool.result[along]
    planes = [_every(op, x, axis, start, stride, pool.size[along]) for start in range(stride)]
    gradients: list[ir.Value | None] = [None] * stride
    for place in range(pool.kernel[along]):
        shift, start = divmod(place - before, stride)
        mine = dy
        if place + 1 < pool.kernel[along]:
            seen = _moved(op, planes[start], axis, -shift, count - length + shift, float("-inf"))
            mine = op.masked(dy, op.Equal(seen, y))
            dy = op.Sub(dy, mine)
        back = _moved(op, mine, axis, shift, length - count - shift, 0.0)
        before_it = gradients[start]
        gradients[start] = back if before_it is None else op.Add(before_it, back)
    parts = [op.Unsqueeze(value, op.ints([axis + 1])) for value in gradients if value is not None]
    return op.Concat(*parts, axis=axis + 1)


def _every(op: Ops, x: ir.Value, axis: int, start: int, stride: int, length: int) -> ir.Value:
    """Every so-manieth element along an axis."""
    if stride == 1:
        return x
    return op.Slice(x, op.ints([start]), op.ints([length]), op.ints([axis]), op.ints([stride]))


def _moved(op: Ops, x: ir.Value, axis: int, begin: int, end: int, fill: float) -> ir.Value:
    """More elements, or fewer where negative, at both ends of an axis."""
    if not begin and not end:
        return x
    pads = [0] * 8
    pads[axis], pads[axis + 4] = begin, end
    return op.Pad(x, op.ints(pads), op.like(fill, x))
