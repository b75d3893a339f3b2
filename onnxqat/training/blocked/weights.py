"""Weights in the orders that blocked convolutions read, by the operators that reorder data: they are faster than Transpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.autodiff.shapes import reshape
from onnxqat.graph.ops import BLOCKED, Ops
from onnxqat.training.blocked.convolution import Convolution


def forward(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → [O/block, I/block, k, block of I, block of O]; [O/block, I, k, block] where data comes in the plain layout."""
    if conv.depthwise:
        return _depthwise(op, weight, conv, block)
    outputs, inputs, taps = conv.outputs, conv.inputs, conv.taps
    rows = weight
    if taps > 1 and not conv.reads_plain(block):
        rows = _innermost(op, rows, [outputs, inputs, 1, taps])
    rows = _innermost(op, rows, [1, outputs, 1, inputs * taps])
    return reshape(op, rows, [outputs, inputs, *conv.kernel])


def flipped(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → weight of the convolution that is the gradient of the data: I and O exchanged, windows turned round."""
    if conv.depthwise:
        return _depthwise(op, weight, conv, block, turned=True)
    exchanged = _places(conv, block).transpose(1, 0, 2)[..., ::-1]
    tiles = op.Gather(_tiles(op, weight, conv, block), op.ints(exchanged.ravel().tolist()), axis=0)
    return reshape(op, tiles, [conv.inputs, conv.outputs, *conv.kernel])


def sub_pixel(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """The same for 3 x 3 with stride 2 and padding 1: a 2 x 2 window for each of the four parities of row and column."""
    exchanged = _places(conv, block).transpose(1, 0, 2)
    chosen = np.full((2, 2, *exchanged.shape[:2], 2, 2), exchanged.size)  # behind all tiles stands one of zeros
    for row, column, down, right in np.ndindex(2, 2, 2, 2):
        tap = row + 1 - 2 * down, column + 1 - 2 * right
        if min(tap) >= 0:
            chosen[row, column, :, :, down, right] = exchanged[..., 3 * tap[0] + tap[1]]
    zeros = op.Constant(value=ir.tensor(np.zeros((1, block**2), np.float32)))
    tiles = op.Concat(_tiles(op, weight, conv, block), zeros, axis=0)
    windows = op.Gather(tiles, op.ints(chosen.ravel().tolist()), axis=0)
    return reshape(op, windows, [4 * conv.inputs, conv.outputs, 2, 2])


def _places(conv: Convolution, block: int) -> NDArray[np.int64]:
    """Numbers of the tiles, [O/block, I/block, k]."""
    shape = conv.outputs // block, conv.inputs // block, conv.taps
    return np.arange(np.prod(shape)).reshape(shape)


def _tiles(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → [O/block · I/block · k, block of O · block of I]."""
    outputs, inputs, taps = conv.outputs, conv.inputs, conv.taps
    rows = _innermost(op, weight, [1, outputs, 1, inputs * taps])
    tiles = _innermost(op, rows, [outputs // block, inputs, 1, taps * block])
    return reshape(op, tiles, [-1, block**2])


def _innermost(op: Ops, values: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Takes the values as data of this shape, and brings a block of its axis 1 innermost."""
    return op.one("ReorderInput", reshape(op, values, shape), _domain=BLOCKED)


def _depthwise(op: Ops, weight: ir.Value, conv: Convolution, block: int, *, turned: bool = False) -> ir.Value:
    """[C, 1, k] → [C/block, k, block]."""
    windows = reshape(op, weight, [conv.outputs // block, block, conv.taps])
    if turned and conv.taps > 1:
        windows = op.Gather(windows, op.ints(list(range(conv.taps))[::-1]), axis=2)
    return reshape(op, op.Transpose(windows, perm=[0, 2, 1]), [conv.outputs, 1, *conv.kernel])
