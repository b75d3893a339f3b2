"""Keeps the scales of weights large enough while they are trained.

8-bit weights stay pair-safe, so that no processor saturates on what ships (see `graph.pairs`), and biases keep fitting into int32
(see `graph.biases`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import Bias, integer_biases
from onnxqat.graph.constants import constant
from onnxqat.graph.pairs import HeldWeight, held_weights
from onnxqat.graph.qdq import Quantizer
from onnxqat.numerics import Reach, pair_safe_scale
from onnxqat.process.crew import Crew, cores

Floats = NDArray[np.float32]

#: Codes times scale, as stored weights come back, may lie a rounding error beyond what the scale reaches.
LEEWAY = np.float32(1 + 2.0**-20)


class PairSafety:
    """Scales that a model's weights have outgrown, where `insert` promised to hold them, or its biases.

    Args:
        qdq: the model.
        threads: number of cores to use; 0: all.
    """

    def __init__(self, qdq: ir.Model, threads: int = 1) -> None:
        self._crew = Crew(threads or cores())
        self._held, self._biases = held_weights(qdq), integer_biases(qdq)
        self._fixed: dict[HeldWeight, Reach] = {}  # of weights that are not trained

    def outgrown(self, arrays: Mapping[str, Floats]) -> Iterator[tuple[str, Floats]]:
        """Names of scales and the values to raise them to, given the values of what is trained; frozen scales too.

        All weights are judged at once: for small layers what NumPy adds to every call would take longer than the numbers.
        """
        held = [one for one in self._held if _has(arrays, one.quantizer.source) or _has(arrays, one.quantizer.scale)]
        if held:
            reach = Reach.joined(self._crew.map(partial(self._reach, arrays), held))
            zero_points = np.concatenate([one.quantizer.zero_points.reshape(-1) for one in held])
            least = pair_safe_scale(reach, zero_points).astype(np.float32)
            yield from _outgrown([one.quantizer for one in held], least, arrays)
        for bias in self._biases:
            yield from _outgrown_by_bias(bias, arrays)

    def bound_by(self, scale: str) -> list[str]:
        """Names of what the least value of a scale depends on: its weight, or bias and scale of the data."""
        weights = [one.quantizer.source for one in self._held if one.quantizer.scale.name == scale]
        biases = [
            value for one in self._biases if one.weight.scale.name == scale for value in (one.value, one.data.scale)
        ]
        return list(dict.fromkeys(str(value.name) for value in (*weights, *biases)))

    def hold(self, arrays: Mapping[str, Floats]) -> None:
        """Raises the trained scales in place."""
        for name, raised in self.outgrown(arrays):
            if name in arrays:
                arrays[name][...] = raised

    def _reach(self, arrays: Mapping[str, Floats], held: HeldWeight) -> Reach:
        source = held.quantizer.source
        if _has(arrays, source):
            return held.reach(arrays[str(source.name)])
        if held not in self._fixed:
            self._fixed[held] = held.reach(constant(source))  # type: ignore[arg-type]
        return self._fixed[held]


def _outgrown(
    quantizers: Sequence[Quantizer], least: Floats, arrays: Mapping[str, Floats]
) -> Iterator[tuple[str, Floats]]:
    """As `PairSafety.outgrown`, given the smallest scales of all these quantizers, one after another."""
    scales = [_scale(one, arrays).reshape(-1) for one in quantizers]
    kept = least <= np.concatenate(scales) * LEEWAY
    if kept.all():
        return
    ends = np.cumsum([scale.size for scale in scales])[:-1]
    for one, smallest, fits in zip(quantizers, np.split(least, ends), np.split(kept, ends), strict=True):
        if not fits.all():  # weights that are no numbers are for others to refuse
            scale = _scale(one, arrays)
            shape = scale.shape
            yield str(one.scale.name), np.where(fits.reshape(shape), scale, np.fmax(scale, smallest.reshape(shape)))


def _outgrown_by_bias(bias: Bias, arrays: Mapping[str, Floats]) -> Iterator[tuple[str, Floats]]:
    """As `PairSafety.outgrown`: the bound follows the bias and the scale of the data."""
    if any(_has(arrays, value) for value in (bias.value, bias.data.scale, bias.weight.scale)):
        array = arrays[str(bias.value.name)] if _has(arrays, bias.value) else bias.array
        least, scales = bias.smallest_weight_scale(array, _scale(bias.data, arrays)), _scale(bias.weight, arrays)
        if not (least <= scales).all():
            yield str(bias.weight.scale.name), np.fmax(scales, least)


def _has(arrays: Mapping[str, Floats], value: ir.Value) -> bool:
    return value.name in arrays


def _scale(quantizer: Quantizer, arrays: Mapping[str, Floats]) -> Floats:
    """The scale as trained, or as the model has it."""
    return arrays.get(str(quantizer.scale.name), quantizer.scales)
