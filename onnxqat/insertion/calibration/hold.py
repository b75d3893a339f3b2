"""Raises the scales of 8-bit weights until no pair of them can saturate (see `graph.pairs`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.pairs import held_weights
from onnxqat.numerics import pair_safe_scale, pair_safe_zero_point


def hold_weights(model: ir.Model) -> None:
    """Gives the weights that are to be pair-safe the scales for it, in place, and fitted zero points that leave room for them.

    Scales and zero points are those of `insert`, an initializer for each weight.
    """
    for held in held_weights(model):
        weight = constant(held.quantizer.source)
        assert weight is not None
        reach, zero_points = held.reach(weight), held.quantizer.zero_points
        if held.layers and zero_points.any():
            zero_points = pair_safe_zero_point(reach)
            _set(held.quantizer.zero_point, zero_points.astype(np.int8))
        scales = np.maximum(held.quantizer.scales, pair_safe_scale(reach, zero_points))
        _set(held.quantizer.scale, np.asarray(scales, np.float32))


def _set(value: ir.Value | None, array: NDArray[np.generic]) -> None:
    assert value is not None
    value.const_value = ir.tensor(array, name=value.name)
