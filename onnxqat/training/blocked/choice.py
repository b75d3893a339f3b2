"""Decides which convolutions become blocked, and whether a graph gains more from them than reordering costs.

A table, not a measurement at start-up: a run must take the same kernels again when it is resumed, or its bits differ. Times are
those of one thread with blocks of 8 (AVX2) and of 16 (AVX-512), over the layers of ResNet-20, ResNet-18 and MobileNetV2.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.training.blocked.convolution import Convolution, Pair
from onnxqat.training.blocked.gradients import can_differentiate, is_sub_pixel

#: Picoseconds won for each product of a dense convolution: the ordinary kernels copy its data first, and more so backward.
_DENSE = {"forward": 5, "data": 20}
#: Picoseconds won for each element of a depthwise one, whose ordinary kernels multiply matrices of one row.
_DEPTHWISE = {"forward": 1500, "data": 4000, "weight": 1000}
#: Picoseconds that it takes to reorder an element.
REORDER = 1200
#: Pixels of a result below which the products of a batch of 8 do not pay for a large weight in blocked order, and what large is.
_FEW_PIXELS, _LARGE = 64, 2**17
#: Channels from which the ordinary gradient of the data at stride 2 is as fast as the blocked one.
_MANY_CHANNELS = 64
#: Pixels where height or width is free: gains and costs both grow with it.
_TYPICAL = 1024


def forward_pays(conv: Convolution, result: ir.Value) -> bool:
    """Whether the blocked kernel is the faster one, its weight's order included."""
    weights = conv.outputs * conv.inputs // conv.groups * conv.taps
    return weights < _LARGE or conv.taps == 1 or pixels(result) >= _FEW_PIXELS


def data_gradient_pays(conv: Convolution, size: Pair | None, block: int) -> bool:
    """The same for the gradient of the data, where there is a blocked form of it."""
    if not can_differentiate(conv, size, block):
        return False
    if conv.depthwise or conv.taps == 1 or conv.strides == (1, 1):
        return True
    return size is not None and is_sub_pixel(conv, size) and conv.inputs < _MANY_CHANNELS


def gain(conv: Convolution, result: ir.Value, kind: str) -> float:
    """Picoseconds that a blocked convolution wins for each sample; `kind` is "forward", "data" or "weight"."""
    elements = conv.outputs * pixels(result)
    if conv.depthwise:
        return elements * _DEPTHWISE[kind]
    return elements * conv.inputs * conv.taps * _DENSE[kind]


def pixels(value: ir.Value) -> int:
    """Height times width, or a typical number where they are free."""
    sizes = [] if value.shape is None else [size for size in list(value.shape)[2:] if isinstance(size, int)]
    return sizes[0] * sizes[1] if len(sizes) == 2 else _TYPICAL
