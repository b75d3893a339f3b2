"""Keeps 8-bit weights pair-safe while they are trained: no processor may saturate on what ships (see `graph.pairs`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.pairs import HeldWeight, held_weights
from onnxqat.graph.qdq import constant
from onnxqat.numerics import along_axis

Array = NDArray[Any]
Floats = NDArray[np.float32]


class PairSafety:
    """What has to change in a model's weights and scales for no pair to saturate; nothing where `insert` promised no such thing.

    A scale that the weights have outgrown is raised to the smallest safe one. Where it is frozen, the weights of its channel
    shrink to what it holds.
    """

    def __init__(self, qdq: ir.Model) -> None:
        self._held = held_weights(qdq)
        self._fixed: dict[str, Floats] = {}  # smallest scales of weights that are not trained

    def corrections(self, arrays: Mapping[str, Floats], frozen: Collection[str] = ()) -> Iterator[tuple[str, Floats]]:
        """Which initializers must take which values.

        Args:
            arrays: values of the trained initializers, by name.
            frozen: names of those that are not trained at present.
        """
        for held in self._held:
            weight, scale = str(held.quantizer.source.name), str(held.quantizer.scale.name)
            if weight not in arrays and scale not in arrays:
                continue
            least = held.least_scale(arrays[weight]) if weight in arrays else self._least(held)
            scales = arrays.get(scale, held.quantizer.scales)
            if (least <= scales).all():
                continue
            if scale in arrays and (scale not in frozen or weight in frozen):
                yield scale, np.fmax(scales, least)  # weights that are no numbers are for others to refuse
            else:
                yield weight, _shrunk(held, arrays[weight], np.minimum(scales / least, 1))

    def hold(self, arrays: Mapping[str, Floats]) -> None:
        """Makes the corrections in place."""
        for name, corrected in self.corrections(arrays):
            arrays[name][...] = corrected

    def _least(self, held: HeldWeight) -> Floats:
        name = str(held.quantizer.source.name)
        if name not in self._fixed:
            self._fixed[name] = held.least_scale(constant(held.quantizer.source))  # type: ignore[arg-type]
        return self._fixed[name]


def _shrunk(held: HeldWeight, weight: Floats, factors: Array) -> Floats:
    """The weight with each channel multiplied by its factor, [] or [C]."""
    return weight * along_axis(factors, weight.ndim, held.quantizer.axis)
