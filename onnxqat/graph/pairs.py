"""Layers whose kernels, on x86 without VNNI, add the products of two neighbours of the reduction in 16 bits and saturate.

Such a processor (AVX2, or AVX-512 before VNNI) multiplies unsigned data codes with signed weight codes two at a time
(`vpmaddubsw`); `numerics.saturates` says which pairs of weight codes that can change. This module says which layers have
such kernels, and which weights of a layer meet in a pair:

- "taps": the reduction of a Conv runs over taps, then the input channels of the group, channels fastest; pairs are its
  neighbours (0, 1), (2, 3), …, across taps where the channels are odd. ONNX Runtime (MLAS), and OpenVINO (oneDNN) on AVX2 for
  groups of an odd number of channels.
- "channels": input channels (0, 1), (2, 3), … of the group at one tap. OpenVINO; ConvTranspose too, which ONNX Runtime computes
  in float. The same as "taps" where the channels are even. Gemm and MatMul: neighbours of the reduction, in both.
- "columns": the taps of a single input channel, neighbours along the height. OpenVINO on AVX-512, 2-D without dilations.

An odd end is padded with a weight of 0. Checked against the kernels themselves: ONNX Runtime 1.19.2 and 1.32 on AVX2, OpenVINO
2026.4 on AVX2 and AVX-512.

Not among them, since their kernels are exact: depthwise convolutions (one channel in and out per group), weights of unsigned
codes, and codes so few bits wide that no pair can reach 16 bits. Not among them, since no weight of theirs can be held: products
of two activations. LSTM and GRU have no integer kernel of stored codes in these runtimes; their weights stay in float.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.qdq import Quantizer, by_output, quantizers
from onnxqat.numerics import SIXTEEN_BITS, Reach

Array = NDArray[Any]
Runtime = Literal["ort", "openvino"]
Pairing = Literal["taps", "channels", "columns"]

#: Metadata of a model: how `insert` kept its weights from saturating, and the value that training has to keep up.
OVERFLOW_FIX, PAIRS = "onnxqat.overflow_fix", "pairs"
#: Weights whose reach is found at a time: their sums then stay in the second-level cache.
_STRETCH = 1 << 16


@dataclass(frozen=True, eq=False)
class PairedLayer:
    """A layer whose kernel adds products in pairs.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        data: the quantizer of its data, per tensor; data movement may lie between them.
        weight: the quantizer of its weight, of signed codes.
        shape: the weight's shape.
    """

    node: ir.Node
    data: Quantizer
    weight: Quantizer
    shape: tuple[int, ...]

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """The runtimes that have such a kernel for it."""
        return ("openvino",) if self.node.op_type == "ConvTranspose" else ("ort", "openvino")

    @property
    def offset(self) -> int:
        """Offset from stored to raw data codes: kernels shift signed codes by 128, whatever a Clip leaves of them."""
        return 128 if self.data.is_signed else 0

    @property
    def largest(self) -> int:
        """Largest raw data code that the kernel reads."""
        return self.data.qmax + self.offset

    def pairings(self, runtime: Runtime) -> tuple[Pairing, ...]:
        """Returns how its weights pair in a runtime's kernels: on AVX2 first, then on AVX-512 before VNNI."""
        inputs, taps = self.blocks(np.broadcast_to(np.int8(0), self.shape)).shape[2:]
        if inputs % 2 == 0 or taps == 1 or self.node.op_type != "Conv":
            return ("channels",)
        if runtime == "ort":
            return ("taps",)
        found: tuple[Pairing, ...] = ("taps", "channels") if _groups(self.node) > 1 else ("channels",)
        dilated = any(step > 1 for step in self.node.attributes.get_ints("dilations", ()))
        return (*found, "columns") if inputs == 1 and len(self.shape) == 4 and not dilated else found

    def blocks(self, array: Array) -> Array:
        """An array of the weight's shape as [G, C, I, T]: groups, output channels, input channels of a group, taps; a view.

        C is the axis along which a scale per output channel runs; G is 1 but for ConvTranspose (groups) and MatMul by
        matrices in a batch.
        """
        if self.node.op_type == "Conv":
            return array.reshape(1, *self.shape[:2], -1)
        if self.node.op_type == "ConvTranspose":
            groups = _groups(self.node)
            return array.reshape(groups, self.shape[0] // groups, self.shape[1], -1).swapaxes(1, 2)
        if array.ndim == 1:
            return array.reshape(1, 1, -1, 1)
        matrices = array if _transposed(self.node) else array.swapaxes(-1, -2)
        return matrices.reshape(-1, *matrices.shape[-2:], 1)

    def members(self, array: Array, pairing: Pairing, fill: int = 0) -> tuple[Array, Array]:
        """First and second member of each pair, for an array of the weight's shape: two arrays [G, C, J, T].

        Where the number of paired elements is even they are views; where it is odd, `fill` is the last one's partner.
        """
        return self._members(self.blocks(array), pairing, fill)

    def pairs(self, array: Array, pairing: Pairing, fill: int = 0) -> Array:
        """The same as one array [R, P, 2], a row for each of the G · C sums of products, group by group.

        Given the flat positions of the weight's elements, `np.arange(size).reshape(shape)`, with a `fill` of -1, it says which
        elements meet; `np.unravel_index` of those gives channel and tap of each.
        """
        both = np.stack(self.members(array, pairing, fill), axis=-1)
        return both.reshape(both.shape[0] * both.shape[1], -1, 2)

    def reach(self, array: Array) -> Reach:
        """Returns the reach of the weights over the pairs of all its runtimes, in the shape of the weight's scale."""
        blocks = self.blocks(array)
        step = max(_STRETCH * blocks.shape[1] // max(blocks.size, 1), 1)
        parts = [self._reach(blocks[:, at : at + step]) for at in range(0, blocks.shape[1], step)]
        low, high, pair_low, pair_high = np.concatenate(parts, axis=1)
        if self.weight.axis is None:
            return Reach(low.min(), high.max(), pair_low.min(), pair_high.max())
        return Reach(low, high, pair_low, pair_high)

    @cached_property
    def every_pairing(self) -> list[Pairing]:
        """The pairings of all its runtimes, each once."""
        return sorted({pairing for runtime in self.runtimes for pairing in self.pairings(runtime)})

    def _reach(self, blocks: Array) -> Array:
        """The four numbers of `Reach` for each output channel: [4, C]."""
        singles = (blocks.min(axis=(0, 2, 3), initial=0), blocks.max(axis=(0, 2, 3), initial=0))
        sums = [np.add(*self._members(blocks, pairing)) for pairing in self.every_pairing]
        lowest = reduce(np.minimum, (s.min(axis=(0, 2, 3), initial=0) for s in sums))
        highest = reduce(np.maximum, (s.max(axis=(0, 2, 3), initial=0) for s in sums))
        return np.stack([*singles, lowest, highest])

    def _members(self, blocks: Array, pairing: Pairing, fill: int = 0) -> tuple[Array, Array]:
        groups, channels, inputs, taps = blocks.shape
        if pairing == "columns":
            blocks = blocks.reshape(groups, channels, *self.shape[2:]).swapaxes(2, 3).reshape(groups, channels, taps, 1)
        elif pairing == "taps":
            blocks = blocks.swapaxes(2, 3).reshape(groups, channels, taps * inputs, 1)
        if blocks.shape[2] % 2:
            blocks = np.pad(blocks, [(0, 0), (0, 0), (0, 1), (0, 0)], constant_values=fill)
        return blocks[:, :, 0::2], blocks[:, :, 1::2]


@dataclass(frozen=True, eq=False)
class HeldWeight:
    """A weight of 8-bit signed codes, with the scale that keeps all kernels that read it exact.

    Attributes:
        quantizer: of the weight.
        layers: those of its readers whose kernels add products in pairs; none where all are depthwise, for one.
    """

    quantizer: Quantizer
    layers: tuple[PairedLayer, ...]

    def reach(self, array: Array) -> Reach:
        """Returns the reach of these weights over the pairs of all readers, in the shape of the scale."""
        if self.layers:
            return reduce(Reach.union, (layer.reach(array) for layer in self.layers))
        axis = self.quantizer.axis
        others = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
        low, high = array.min(axis=others, initial=0), array.max(axis=others, initial=0)
        return Reach(low, high, np.zeros_like(low), np.zeros_like(high))


def held_weights(model: ir.Model) -> list[HeldWeight]:
    """The weights of a Q/DQ model that `insert` promised to keep pair-safe; none where it did not (`Config.overflow_fix`).

    They are those of 8-bit signed codes that a kernel adds in pairs, and others whose scale alone keeps a code from being -128; a
    Clip does that for fitted zero points, which may leave no room for a scale to do it.
    """
    if model.metadata_props.get(OVERFLOW_FIX) != PAIRS:
        return []
    readers: dict[ir.Value, list[PairedLayer]] = defaultdict(list)
    for layer in paired_layers(model):
        readers[layer.weight.output].append(layer)
    return [
        HeldWeight(one, tuple(readers.get(one.output, ())))
        for one in quantizers(model)
        if one.is_weight
        and one.quantize is not None
        and one.qmax == 127
        and (one.qmin == -128 or one.output in readers)
    ]


def paired_layers(model: ir.Model) -> list[PairedLayer]:
    """The layers of a Q/DQ or deployed model whose kernels add products in pairs that could saturate, whatever the weights are.

    Conv of any rank and grouping but depthwise, ConvTranspose, Gemm and MatMul by a weight on the right. Both sides must be
    quantized, the data per tensor, the weight per tensor or per output channel with signed codes; and
    largest data code · two largest weight codes must not fit into 16 bits: with 8 bits on one side and 7 on the other it does.
    """
    return list(_layers(model))


def _layers(model: ir.Model) -> Iterator[PairedLayer]:
    produced_by = by_output(quantizers(model))
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        data, weight = quantizer_above(node.inputs[0], produced_by), produced_by.get(node.inputs[1])  # type: ignore[arg-type]
        if (
            data is None
            or weight is None
            or data.axis is not None
            or weight.block
            or not _is_byte(data)
            or not _is_byte(weight)
        ):
            continue
        stored = constant(weight.source)  # None: computed, or codes of 4 bits and fewer, packed
        if stored is None or weight.qmin >= 0:
            continue
        layer = PairedLayer(node, data, weight, stored.shape)
        if -2 * weight.qmin * layer.largest > SIXTEEN_BITS[1] and not _is_depthwise(layer) and _per_channel(layer):
            yield layer


def _is_byte(quantizer: Quantizer) -> bool:
    return quantizer.qmin >= -128 and quantizer.qmax <= 255


def _is_depthwise(layer: PairedLayer) -> bool:
    if layer.node.op_type == "ConvTranspose":
        return layer.shape[0] == _groups(layer.node) and layer.shape[1] == 1
    return layer.node.op_type == "Conv" and layer.shape[1] == 1 and layer.shape[0] == _groups(layer.node)


def _per_channel(layer: PairedLayer) -> bool:
    """Whether the scale is one, or runs along the output channels: others have no integer kernel."""
    axis = {"Conv": 0, "ConvTranspose": 1}.get(
        layer.node.op_type, len(layer.shape) - (2 if _transposed(layer.node) else 1)
    )
    return layer.weight.axis in (None, axis)


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _transposed(node: ir.Node) -> bool:
    return "transB" in node.attributes and bool(node.attributes["transB"].as_int())
