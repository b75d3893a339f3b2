"""Gradients of DFT and STFT. Complex numbers are pairs of floats in the last axis, as in the ONNX specification."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import arange, reshape, size, sizes, zeros
from onnxqat.graph.ops import Ops


def dft_rule(node: ir.Node) -> Custom | Refused:
    """The axis must be known. ONNX Runtime has no one-sided inverse."""
    x = node.inputs[0]
    call = Call(node.op_type, tuple(node.inputs), (), node.attributes, 0)
    if x is None or x.shape is None or (call.input(2) is not None and call.constant(2) is None):
        return Refused("the rank of its input or its axis is not known; give the input a shape, the axis as a constant")
    if call.get("inverse", 0) and call.get("onesided", 0):
        return Refused("ONNX Runtime 1.19 cannot run a one-sided inverse")
    return Custom(dft_gradient, inputs=frozenset({0}))


def dft_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """DFT, y = F·x, so dx = Fᴴ·dy: the transform in the other direction, which ONNX scales by 1/n if it is the inverse.

    One-sided, dy is 0 at the frequencies that were left out; x shorter or longer than the transform was padded or cut, and so
    is dx the other way round; a real x takes the real part.
    """
    x, rank = call.inputs[0], call.rank()
    assert x is not None
    assert rank is not None
    axis = _axis(call, rank)
    length = (
        size(op, x, axis) if call.input(1) is None else reshape(op, op.Cast(call.inputs[1], to=ir.DataType.INT64), [])
    )
    inverse = call.get("inverse", 0)
    whole = _to_length(op, dy, axis, length)
    back = _transform(op, call, whole, axis, inverse=1 - inverse)
    n = op.Cast(length, to=dy.dtype or ir.DataType.FLOAT)
    back = op.Div(back, n) if inverse else op.Mul(back, n)
    back = _to_length(op, back, axis, size(op, x, axis))
    return op.Slice(back, op.ints([0]), sizes(op, x, [rank - 1]), op.ints([rank - 1]))


def stft_rule(node: ir.Node) -> Expanded | Refused:
    """Frames are cut out with Gather, then transformed."""
    x = node.inputs[0]
    if x is None or x.shape is None or x.shape[-1] != 1:
        return Refused(
            "its signal is complex or of unknown shape; only real signals of shape (batch, length, 1) are handled"
        )
    return Expanded(stft_as_dft, inputs=frozenset({0, 2}))


def stft_as_dft(op: Ops, call: Call) -> ir.Value:
    """STFT, y[b, t, f] = DFT of window·x[b, t·step : t·step + length]."""
    x, step, window, given = call.inputs[0], call.inputs[1], call.input(2), call.input(3)
    assert x is not None
    step = reshape(op, op.Cast(step, to=ir.DataType.INT64), [])
    if given is not None:
        length = reshape(op, op.Cast(given, to=ir.DataType.INT64), [])
    else:
        assert window is not None
        length = size(op, window, 0)
    frames = op.Add(op.Div(op.Sub(size(op, x, 1), length), step), op.Constant(value_int=1))
    starts = op.Mul(reshape(op, arange(op, frames), [-1, 1]), step)
    cut = op.Gather(op.Squeeze(x, op.ints([2])), op.Add(starts, arange(op, length)), axis=1)
    cut = cut if window is None else op.Mul(cut, window)
    cut = op.Unsqueeze(cut, op.ints([3]))
    cut.shape = ir.Shape([None, None, None, 1])
    if op.opset >= 20:
        return op.DFT(cut, None, op.Constant(value_int=2), onesided=call.get("onesided", 1))
    return op.DFT(cut, axis=2, onesided=call.get("onesided", 1))


def _axis(call: Call, rank: int) -> int:
    if call.opset < 20:
        return int(call.get("axis", 1)) % rank
    given = call.constant(2)
    return int(given[0]) % rank if given else rank - 2


def _transform(op: Ops, call: Call, x: ir.Value, axis: int, *, inverse: int) -> ir.Value:
    if op.opset >= 20:
        return op.DFT(x, None, op.Constant(value_int=axis), inverse=inverse)
    return op.DFT(x, axis=axis, inverse=inverse)


def _to_length(op: Ops, x: ir.Value, axis: int, length: ir.Value) -> ir.Value:
    """Cuts off or adds zeros at the end of an axis."""
    ends = op.Unsqueeze(length, op.ints([0]))
    cut = op.Slice(x, op.ints([0]), ends, op.ints([axis]))
    missing = op.Sub(ends, sizes(op, cut, [axis]))
    shape = op.ScatterElements(op.Shape(cut), op.ints([axis]), missing)
    return op.Concat(cut, zeros(op, shape, x.dtype or ir.DataType.FLOAT), axis=axis)


RULES: Mapping[str, RuleOrChoice] = {
    "DFT": dft_rule,
    "STFT": stft_rule,
}
