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
    block = dequantize.attributes.get_int("block_size", 0)
    if scales.ndim > 1 and not block:
        raise UnsupportedModelError(
            f"{what}: scale {scale.name!r} has shape {list(scales.shape)}, not one axis at most; quantize the model again"
        )
    stored = constant(source)
    shape = source.shape if stored is None else ir.Shape(stored.shape)  # what a model says of it may be wrong
    if shape is None or (scales.size == 1 and not block):
        return
    axis, rank = dequantize.attributes.get_int("axis", 1), shape.rank()
    if not -rank <= axis < rank:
        raise UnsupportedModelError(
            f"{what}: axis is {axis}, but {source.name!r} has {rank} axes; quantize the model again"
        )
    if block:
        _check_blocks(what, scales, list(shape), axis % rank, block)
        return
    size = shape[axis]
    if isinstance(size, int) and size != len(scales):
        raise UnsupportedModelError(
            f"{what}: scale {scale.name!r} has shape {list(scales.shape)}, axis {axis} of {source.name!r} size {size}; "
            "quantize the model again"
        )


def _check_blocks(what: str, scales: NDArray[Any], sizes: list[Any], axis: int, block: int) -> None:
    """Refuses scales that are not one for each block, the last of which may be shorter."""
    expected = [-(-size // block) if i == axis and isinstance(size, int) else size for i, size in enumerate(sizes)]
    fits = len(expected) == scales.ndim and all(
        want == found or not isinstance(want, int) for want, found in zip(expected, scales.shape, strict=True)
    )
    if not fits:
        raise UnsupportedModelError(
            f"{what}: its scale has shape {list(scales.shape)}, blocks of {block} along axis {axis} of {sizes} need {expected}; "
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
