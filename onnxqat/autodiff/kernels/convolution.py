"""Backward kernel of Conv (Dumoulin & Visin 2016, section 4), for any number of spatial axes and sizes known only at run time.

dX is the transposed convolution of dY. dW multiplies dY with the patches of X that each output saw: one strided slice of the
padded X for each element of the kernel (a *tap*), all of them in one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Formula
from onnxqat.autodiff.shapes import reshape, sizes
from onnxqat.autodiff.windows import Window, padded, spatial, window
from onnxqat.graph.ops import Ops

#: Positions of a sample from which each sample has a product of its own; also their number where it is free.
_MANY = 128


def conv_grad(op: Ops, call: Call) -> Sequence[ir.Value]:
    """(dY, X, W): dX, dW and dB."""
    dy, x, weight = (call.required(i) for i in range(3))
    w, groups = window(call), call.get("group", 1)
    dw = _of_groups(op, dy, x, weight, w, groups) if groups > 1 else _of_weight(op, dy, x, weight, w)
    db = op.reduce("Sum", dy, [0, *range(2, 2 + w.rank)], keepdims=False)
    return _of_data(op, dy, x, weight, w, groups), dw, db


def _of_data(op: Ops, dy: ir.Value, x: ir.Value, weight: ir.Value, w: Window, groups: int) -> ir.Value:
    """Transposes the convolution. Where it leaves open how long X was, the longest that it may have been is cut to X's size."""
    tail = _tail(x, w)
    dx = op.ConvTranspose(
        dy,
        weight,
        kernel_shape=w.kernel,
        strides=w.strides,
        dilations=w.dilations,
        pads=w.pads,
        group=groups,
        output_padding=[stride - 1 for stride in w.strides] if tail is None else tail,
    )
    if tail is not None:
        return dx
    return op.Slice(dx, op.ints([0] * w.rank), spatial(op, x, w.rank), op.ints(_spatial_axes(w)))


def _tail(x: ir.Value, w: Window) -> list[int] | None:
    """Returns how much of the padded X lies behind the last window, for each axis; None where the shapes do not tell."""
    if all(stride == 1 for stride in w.strides):
        return [0] * w.rank
    if x.shape is None or not all(isinstance(size, int) for size in x.shape[2:]):
        return None
    spaces = (int(size) + sum(w.pads[i :: w.rank]) - w.reach[i] for i, size in enumerate(x.shape[2:]))  # type: ignore[arg-type]
    return [space % stride for space, stride in zip(spaces, w.strides, strict=True)]


def _of_weight(op: Ops, dy: ir.Value, x: ir.Value, weight: ir.Value, w: Window) -> ir.Value:
    """dW[o, c, row, column] = Σ over samples and positions of dY[o] · X[c] seen through that element of the kernel.

    A window of one element multiplies sample by sample, where it has enough positions. All others have their channels first and
    one product for each row of the kernel, over samples and positions at once.
    """
    positions = _positions(dy)
    x_first = _x_first(weight, w, positions)
    if prod(w.kernel) == 1 and positions >= _MANY:
        (seen,) = _taps(op, x, dy, w)
        flat_dy, flat_x = (reshape(op, value, [0, 0, -1]) for value in (dy, seen))
        each = _product(op, flat_dy, flat_x, 3, x_first=x_first)
        rows = [op.reduce("Sum", each, [0], keepdims=False)]
    else:
        dy, x = (op.Transpose(value, perm=[1, 0, *_spatial_axes(w)]) for value in (dy, x))
        rows = [
            _product(op, op.Flatten(left, axis=1), op.Flatten(right, axis=2), 2, x_first=x_first)
            for left, right in _rows(op, dy, x, w)
        ]
    if x_first:
        rows = [op.Transpose(row, perm=[1, 0]) for row in rows]
    rows = [reshape(op, row, [0, -1, 1, prod(w.kernel[1:])]) for row in rows]
    return op.Reshape(op.Concat(*rows, axis=2) if len(rows) > 1 else rows[0], op.Shape(weight))


def _x_first(weight: ir.Value, w: Window, positions: int) -> bool:
    """Whether X·dYᵀ, transposed, is faster than dY·Xᵀ: the second factor is repacked, so it should be the one of fewer rows.

    With few positions the product is larger than both, and what counts is that it need not be transposed.
    """
    outputs, inputs = (None, None) if weight.shape is None else weight.shape[:2]
    if not isinstance(outputs, int) or not isinstance(inputs, int):
        return False
    return outputs <= inputs * prod(w.kernel[1:]) and outputs <= 2 * positions


def _product(op: Ops, dy: ir.Value, x: ir.Value, rank: int, *, x_first: bool) -> ir.Value:
    factors = (x, dy) if x_first else (dy, x)
    for factor in factors:
        factor.shape = ir.Shape([None] * rank)
    return op.kernel("FusedMatMul", *factors, transB=1)[0]


def _rows(op: Ops, dy: ir.Value, x: ir.Value, w: Window) -> list[tuple[ir.Value, ir.Value]]:
    """For each row of the kernel, dY and what of X it was multiplied with, a column of the kernel after the other in axis 1.

    Without a stride, it is the small dY that is moved along the rows of X, by zeros before and behind it.
    """
    x = _columns(op, x, dy, w)
    reach, stride, step = w.reach[0] - 1, w.strides[0], w.dilations[0]
    starts = [row * step for row in range(w.kernel[0])]
    if reach == 0 and stride == 1:
        return [(dy, x)]
    if stride == 1:
        last = [0] * (w.rank - 1)
        moved = (op.Pad(dy, op.ints([0, 0, start, *last, 0, 0, reach - start, *last])) for start in starts)
        return [(each, x) for each in moved]
    beyond = op.Add(op.Mul(op.Sub(sizes(op, dy, [2]), op.ints([1])), op.ints([stride])), op.ints([1]))
    first = (op.ints([start]) for start in starts)
    return [(dy, op.Slice(x, begin, op.Add(begin, beyond), op.ints([3]), op.ints([stride]))) for begin in first]


def _columns(op: Ops, x: ir.Value, dy: ir.Value, w: Window) -> ir.Value:
    """X, channels first, as each element of a row of the kernel sees it: [C, columns, N, …]."""
    columns = [op.Unsqueeze(column, op.ints([1])) for column in _taps(op, x, dy, w, first=1)]
    return op.Concat(*columns, axis=1) if len(columns) > 1 else columns[0]


def _positions(dy: ir.Value) -> int:
    """Number of positions of a sample, or a typical one where it is free."""
    found = [] if dy.shape is None else list(dy.shape)[2:]
    known = [size for size in found if isinstance(size, int)]
    return prod(known) if known and len(known) == len(found) else _MANY


def _of_groups(op: Ops, dy: ir.Value, x: ir.Value, weight: ir.Value, w: Window, groups: int) -> ir.Value:
    """The same for each sample and group on its own, then summed over samples."""
    left = reshape(op, dy, [0, groups], _per_group(op, dy, groups), [-1])  # (N, G, O/G, positions)
    columns = []
    for tap in _taps(op, x, dy, w):
        right = reshape(op, tap, [0, groups], _per_group(op, x, groups), [-1])  # (N, G, C/G, positions)
        right.shape = ir.Shape([None] * 4)
        columns.append(op.kernel("FusedMatMul", left, right, transB=1)[0])
    taps = [op.Unsqueeze(column, op.ints([-1])) for column in columns]
    summed = op.reduce("Sum", op.Concat(*taps, axis=-1) if len(taps) > 1 else taps[0], [0], keepdims=False)
    return op.Reshape(summed, op.Shape(weight))


def _per_group(op: Ops, x: ir.Value, groups: int) -> ir.Value:
    return op.Div(sizes(op, x, [1]), op.ints([groups]))


def _taps(op: Ops, x: ir.Value, dy: ir.Value, w: Window, first: int = 0) -> list[ir.Value]:
    """For each element of the kernel, in row-major order, what of `x` it was multiplied with, in the spatial shape of dY.

    Spatial axes before `first` stay whole, padding included.
    """
    if any(w.pads):
        x = padded(op, x, op.ints(w.pads[: w.rank]), op.ints(w.pads[w.rank :]))
    axes = _spatial_axes(w)[first:]
    kernel, steps, dilations = w.kernel[first:], w.strides[first:], w.dilations[first:]
    if all(size == stride == 1 for size, stride in zip(kernel, steps, strict=True)):
        return [x]
    strides = op.ints(steps)
    beyond = op.Add(op.Mul(op.Sub(sizes(op, dy, axes), op.ints([1])), strides), op.ints([1]))
    taps = []
    for place in product(*(range(size) for size in kernel)):
        start = op.ints([k * d for k, d in zip(place, dilations, strict=True)])
        taps.append(op.Slice(x, start, op.Add(start, beyond), op.ints(axes), strides))
    return taps


def _spatial_axes(w: Window) -> list[int]:
    return list(range(2, 2 + w.rank))


BODIES: Mapping[str, Formula] = {"ConvGrad": conv_grad}
