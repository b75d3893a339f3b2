"""Weights in the orders that blocked convolutions read, written so that whole blocks move: vectors, not single numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxqat.autodiff.shapes import reshape
from onnxqat.graph.ops import BLOCKED, Ops
from onnxqat.training.blocked.convolution import Convolution


def forward(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → [O/block, I/block, k, block of I, block of O]; [O/block, I, k, block] where data comes in the plain layout."""
    outputs, inputs, taps = conv.outputs, conv.inputs, conv.taps
    if conv.depthwise:
        return _depthwise(op, weight, conv, block)
    rows = op.one("ReorderInput", reshape(op, weight, [1, outputs, 1, inputs * taps]), _domain=BLOCKED)
    if taps > 1 and not conv.reads_plain(block):
        blocks = reshape(op, rows, [outputs * inputs // block**2, block, taps, block])
        rows = op.Transpose(blocks, perm=[0, 2, 1, 3])
    return reshape(op, rows, [outputs, inputs, *conv.kernel])


def flipped(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → weight of the convolution that is the gradient of the data: I and O exchanged, windows turned round."""
    if conv.depthwise:
        return _depthwise(op, weight, conv, block, turned=True)
    tiles = _tiles(op, weight, conv, block)
    if conv.taps > 1:
        tiles = _chosen(op, tiles, range(conv.taps)[::-1])
    return reshape(op, tiles, [conv.inputs, conv.outputs, *conv.kernel])


def sub_pixel(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """The same for 3 x 3 with stride 2 and padding 1: a 2 x 2 window for each of the four parities of row and column."""
    nothing = conv.taps
    taps = []
    for parity in np.ndindex(2, 2):
        for place in np.ndindex(2, 2):
            row, column = (p + 1 - 2 * q for p, q in zip(parity, place, strict=True))
            taps.append(3 * row + column if row >= 0 and column >= 0 else nothing)
    tiles = _tiles(op, weight, conv, block)
    places = conv.outputs * conv.inputs // block**2
    zeros = op.Constant(value=ir.tensor(np.zeros((places, 1, block**2), np.float32)))
    chosen = _chosen(op, op.Concat(tiles, zeros, axis=1), taps)
    parities = op.Transpose(reshape(op, chosen, [places, 4, 4 * block**2]), perm=[1, 0, 2])
    return reshape(op, parities, [4 * conv.inputs, conv.outputs, 2, 2])


def _tiles(op: Ops, weight: ir.Value, conv: Convolution, block: int) -> ir.Value:
    """[O, I, k] → [I/block · O/block, k, block of O · block of I]."""
    outputs, inputs, taps = conv.outputs, conv.inputs, conv.taps
    rows = op.one("ReorderInput", reshape(op, weight, [outputs, inputs, 1, taps]), _domain=BLOCKED)
    rows = reshape(op, rows, [outputs // block, block, inputs // block, taps, block])
    tiles = op.Transpose(rows, perm=[2, 0, 3, 1, 4])
    return reshape(op, tiles, [outputs * inputs // block**2, taps, block**2])


def _chosen(op: Ops, tiles: ir.Value, taps: Sequence[int]) -> ir.Value:
    return op.Gather(tiles, op.ints(list(taps)), axis=1)


def _depthwise(op: Ops, weight: ir.Value, conv: Convolution, block: int, *, turned: bool = False) -> ir.Value:
    """[C, 1, k] → [C/block, k, block]."""
    windows = reshape(op, weight, [conv.outputs // block, block, conv.taps])
    if turned and conv.taps > 1:
        windows = op.Gather(windows, op.ints(list(range(conv.taps))[::-1]), axis=2)
    return reshape(op, op.Transpose(windows, perm=[0, 2, 1]), [conv.outputs, 1, *conv.kernel])
