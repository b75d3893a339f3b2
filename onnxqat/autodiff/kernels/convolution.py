"""Backward kernel of Conv (Dumoulin & Visin 2016, section 4), for any number of spatial axes and sizes known only at run time.

dX is the transposed convolution of dY. dW multiplies dY with the patches of X that each output saw: one strided slice of the
padded X for each element of the kernel (a *tap*), all of them in one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Formula
from onnxqat.autodiff.shapes import reshape, sizes
from onnxqat.autodiff.windows import Window, padded, spatial, window
from onnxqat.graph.ops import Ops


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
    """dW[o, c, tap] = Σ over batch and positions of dY[o]·X[c, tap]: a product over one long axis, channels first."""
    swap, last = [1, 0, *_spatial_axes(w)], [0, *_spatial_axes(w), 1]
    taps = _taps(op, op.Transpose(x, perm=swap), dy, w)
    patches = op.Concat(*taps, axis=0) if len(taps) > 1 else taps[0]  # (taps·C, N, …)
    channels = sizes(op, dy, [1])
    rows = op.Reshape(op.Transpose(dy, perm=last), op.Concat(op.ints([-1]), channels, axis=0))
    summed = op.MatMul(op.Flatten(patches, axis=1), rows)  # (taps·C, O)
    summed = reshape(op, summed, [len(taps), -1], channels)
    return op.Reshape(op.Transpose(summed, perm=[2, 1, 0]), op.Shape(weight))


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


def _taps(op: Ops, x: ir.Value, dy: ir.Value, w: Window) -> list[ir.Value]:
    """For each element of the kernel, in row-major order, what of `x` it was multiplied with, in the spatial shape of dY."""
    if any(w.pads):
        x = padded(op, x, op.ints(w.pads[: w.rank]), op.ints(w.pads[w.rank :]))
    if all(size == stride == 1 for size, stride in zip(w.kernel, w.strides, strict=True)):
        return [x]
    axes, strides = op.ints(_spatial_axes(w)), op.ints(w.strides)
    beyond = op.Add(op.Mul(op.Sub(spatial(op, dy, w.rank), op.ints([1])), strides), op.ints([1]))
    taps = []
    for place in product(*(range(size) for size in w.kernel)):
        start = op.ints([k * d for k, d in zip(place, w.dilations, strict=True)])
        taps.append(op.Slice(x, start, op.Add(start, beyond), axes, strides))
    return taps


def _spatial_axes(w: Window) -> list[int]:
    return list(range(2, 2 + w.rank))


BODIES: Mapping[str, Formula] = {"ConvGrad": conv_grad}
