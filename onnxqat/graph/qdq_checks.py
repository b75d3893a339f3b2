"""Refuses quantizers whose parts do not fit each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import UnsupportedModelError
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label


def check_shapes(dequantize: ir.Node, scale: ir.Value, zero_point: ir.Value | None, source: ir.Value) -> None:
    """Refuses a scale, a zero point or an axis that does not fit what is quantized."""
    scales, points = required(scale), None if zero_point is None else required(zero_point)
    what = label(dequantize)
    if points is not None and points.shape != scales.shape and points.size * scales.size != 1:
        raise UnsupportedModelError(
            f"{what}: its zero point has shape {list(points.shape)}, its scale {list(scales.shape)}; quantize the model again"
        )
    in_blocks = "block_size" in dequantize.attributes and dequantize.attributes["block_size"].as_int() > 0
    if scales.ndim > 1 and not in_blocks:
        raise UnsupportedModelError(
            f"{what}: scale {scale.name!r} has shape {list(scales.shape)}, not one axis at most; quantize the model again"
        )
    stored = constant(source)
    shape = source.shape if stored is None else ir.Shape(stored.shape)  # what a model says of it may be wrong
    if scales.size == 1 or shape is None or in_blocks:
        return
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    rank = shape.rank()
    if not -rank <= axis < rank:
        raise UnsupportedModelError(
            f"{what}: axis is {axis}, but {source.name!r} has {rank} axes; quantize the model again"
        )
    size = shape[axis]
    if isinstance(size, int) and size != len(scales):
        raise UnsupportedModelError(
            f"{what}: scale {scale.name!r} has shape {list(scales.shape)}, axis {axis} of {source.name!r} size {size}; "
            "quantize the model again"
        )


def check_agree(quantize: ir.Node, dequantize: ir.Node) -> None:
    """Refuses a QuantizeLinear and a DequantizeLinear of different scales or zero points."""
    for index, what in ((1, "scale"), (2, "zero point")):
        values = [n.inputs[index] if len(n.inputs) > index else None for n in (quantize, dequantize)]
        if values[0] is values[1]:
            continue
        pair = [constant(value) for value in values]
        left, right = (np.asarray(0) if value is None else value for value in pair)
        if left.shape != right.shape or not np.array_equal(left, right):
            raise UnsupportedModelError(
                f"{label(quantize)} and {label(dequantize)} have different {what}s; a quantizer must use one"
            )


def required(value: ir.Value) -> NDArray[Any]:
    """The array behind a scale, a zero point or codes, which must be constant."""
    array = constant(value)
    if array is None:
        raise UnsupportedModelError(
            f"value {value.name!r} of a quantizer is computed at run time; constant-fold the model first"
        )
    return array
