"""Keeps the scales of weights large enough while they are trained.

8-bit weights stay pair-safe, so that no processor saturates on what ships (see `graph.pairs`), and biases keep fitting into int32
(see `graph.biases`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import Bias, integer_biases
from onnxqat.graph.pairs import HeldWeight, held_weights
from onnxqat.graph.qdq import constant

Floats = NDArray[np.float32]

#: Codes times scale, as stored weights come back, may lie a rounding error beyond what the scale reaches.
LEEWAY = np.float32(1 + 2.0**-20)


class PairSafety:
    """Scales that a model's weights have outgrown, where `insert` promised to hold them, or its biases."""

    def __init__(self, qdq: ir.Model) -> None:
        self._held, self._biases = held_weights(qdq), integer_biases(qdq)
        self._fixed: dict[str, Floats] = {}  # smallest scales of weights that are not trained

    def outgrown(self, arrays: Mapping[str, Floats]) -> Iterator[tuple[str, Floats]]:
        """Names of scales and the values to raise them to, given the values of what is trained; frozen scales too."""
        for held in self._held:
            weight, scale = str(held.quantizer.source.name), str(held.quantizer.scale.name)
            if weight not in arrays and scale not in arrays:
                continue
            least = held.least_scale(arrays[weight]) if weight in arrays else self._least(held)
            scales = arrays.get(scale, held.quantizer.scales)
            kept = least <= scales * LEEWAY
            if not kept.all():  # weights that are no numbers are for others to refuse
                yield scale, np.where(kept, scales, np.fmax(scales, least))
        for bias in self._biases:
            yield from _outgrown_by_bias(bias, arrays)

    def hold(self, arrays: Mapping[str, Floats]) -> None:
        """Raises the trained scales in place."""
        for name, raised in self.outgrown(arrays):
            if name in arrays:
                arrays[name][...] = raised

    def _least(self, held: HeldWeight) -> Floats:
        name = str(held.quantizer.source.name)
        if name not in self._fixed:
            self._fixed[name] = held.least_scale(constant(held.quantizer.source))  # type: ignore[arg-type]
        return self._fixed[name]


def _outgrown_by_bias(bias: Bias, arrays: Mapping[str, Floats]) -> Iterator[tuple[str, Floats]]:
    """As `PairSafety.outgrown`: the bound follows the bias and the scale of the data."""
    value, data, scale = str(bias.value.name), str(bias.data.scale.name), str(bias.weight.scale.name)
    if value in arrays or data in arrays or scale in arrays:
        least = bias.smallest_weight_scale(arrays.get(value, bias.array), arrays.get(data, bias.data.scales))
        scales = arrays.get(scale, bias.weight.scales)
        if not (least <= scales).all():
            yield scale, np.fmax(scales, least)
