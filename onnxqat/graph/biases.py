"""Biases of integer layers: where they stand, and the grid sx · sw on which an integer kernel adds them.

The kernel adds the bias to its int32 accumulator, whose unit is the product of the scales of data and weight (Jacob et al.
2018, section 2.4). At 8 bits the grid is fine; at 4 bits and fewer it is so coarse that rounding to it changes answers.
Where weights or inputs are tiny beside the bias its codes would leave int32, so the weight's scale has a lower bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.qdq import WIDE, Quantizer, by_output, quantizers

log = logging.getLogger(__name__)

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Add a shift as their kernels add a bias, where data and scale are integers.
NORMALIZING = ("LayerNormalization", "InstanceNormalization")
#: Bound of a bias plus the products that it is added to, in int32; half of the range is left for training.
ROOM = 2.0**30
#: The largest product of two 8-bit codes.
PRODUCT = 255 * 128
#: Bound of the bias where the products alone could fill int32.
LEAST_ROOM = 2.0**24
#: No network computes with numbers this large; the smallest fill in use is half precision's -1e4.
SMALLEST_FILL = 1e4
#: Metadata of a model: whether its biases are deployed as "int32" or "float".
DEPLOYED_AS = "onnxqat.bias"


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant float bias of a layer that reads integers on both sides.

    Attributes:
        layer: the Conv, ConvTranspose, Gemm or MatMul, or a normalization with a quantized scale.
        adder: the node that adds the bias: the layer itself, or the Add behind a MatMul.
        index: at which of its inputs.
        value: the bias.
        data: the quantizer of the layer's data, per tensor.
        weight: the quantizer of its weight.
    """

    layer: ir.Node
    adder: ir.Node
    index: int
    value: ir.Value
    data: Quantizer
    weight: Quantizer

    @property
    def array(self) -> NDArray[np.float32]:
        """The bias as an array."""
        array = constant(self.value)
        assert array is not None
        return array

    @property
    def step(self) -> NDArray[np.float32]:
        """Its grid, sx · sw: [] or [C]."""
        with np.errstate(over="ignore"):
            return np.asarray(self.data.scales.reshape(()) * self.weight.scales, np.float32)

    @cached_property
    def room(self) -> float:
        """Largest magnitude of its codes at which codes and products together fit into the sum of the kernel.

        That is int32, for data of 8 bits; QNN's kernels for 16 add in more (measured in its emulator).
        """
        if self.data.bits == WIDE:
            return ROOM
        return max(ROOM - PRODUCT * _products(self.layer, self.weight), LEAST_ROOM)

    def smallest_weight_scale(self, array: NDArray[np.float32], data_scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Smallest scale of the weight, in its shape, at which the codes of the bias fit and its grid is a normal float."""
        needed = np.maximum(np.abs(array) * np.float32(1 / self.room), np.finfo(np.float32).tiny)
        shape = self.weight.scales.shape
        if not shape:
            needed = needed.max(initial=0)
        elif needed.shape != shape:
            rows = np.broadcast_to(needed, np.broadcast_shapes(needed.shape, shape))
            needed = rows.reshape(-1, *shape).max(axis=0)
        return np.asarray(needed / data_scale.reshape(()), np.float32)

    @property
    def codes(self) -> NDArray[np.float64]:
        """Codes of the bias on its grid, in its shape; the caller judges those beyond int32 or not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):  # scales that underflow to 0
            return np.asarray(np.rint(self.array.astype(np.float64) / self.step))


def masks(array: NDArray[np.floating]) -> bool:
    """Says whether added numbers are a mask, as -1e9 and -inf are: no bias, and on no integer grid."""
    return bool((np.abs(array) >= SMALLEST_FILL).any())


def biases_are_integers(model: ir.Model) -> bool:
    """Whether the model's target takes biases as int32 rather than float."""
    return model.metadata_props.get(DEPLOYED_AS, "int32") == "int32"


def integer_biases(model: ir.Model) -> list[Bias]:
    """The biases that become int32 when the model is folded; none where its target takes them in float."""
    if not biases_are_integers(model):
        return []
    produced_by = by_output(quantizers(model))
    found = (_bias(node, produced_by) for node in model.graph if node.op_type in (*WEIGHTED, *NORMALIZING))
    return [bias for bias in found if bias is not None]


def make_room(model: ir.Model) -> None:
    """Raises the scales of weights, in place, until the biases fit into int32 beside the products."""
    raised = []
    for bias in integer_biases(model):
        scale = bias.weight.scale
        held, smallest = np.asarray(constant(scale)), bias.smallest_weight_scale(bias.array, bias.data.scales)
        if (held < smallest).any():
            scale.const_value = ir.tensor(np.maximum(held, smallest), name=scale.name)
            raised.append(str(bias.layer.name))
    if raised:
        log.info("raised the scales of weights, so that biases fit into int32: %s", ", ".join(raised))


def round_biases(model: ir.Model, chosen: Callable[[Bias], bool]) -> None:
    """Moves chosen biases to their grid, in place; one that others read too, or that diverged, stays as it is."""
    for bias in integer_biases(model):
        shared = len(bias.value.uses()) > 1 or bias.value.is_graph_output()
        rounded = bias.codes * bias.step
        if chosen(bias) and not shared and (np.abs(rounded) <= np.finfo(np.float32).max).all():
            bias.value.const_value = ir.tensor(rounded.astype(np.float32), name=bias.value.name)


def _products(layer: ir.Node, weight: Quantizer) -> int:
    """Returns the number of products that the layer adds up for one output."""
    array = constant(weight.source)
    if array is None:
        return 0
    if layer.op_type == "Conv":
        return int(np.prod(array.shape[1:]))
    if layer.op_type == "ConvTranspose":
        return int(np.prod(array.shape)) // int(array.shape[1] * layer.attributes.get_int("group", 1))
    transposed = layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 1
    return int(array.shape[-1 if transposed or array.ndim == 1 else -2])


def _bias(layer: ir.Node, produced_by: dict[ir.Value, Quantizer]) -> Bias | None:
    data, weight = quantizer_above(layer.inputs[0], produced_by), produced_by.get(layer.inputs[1])  # type: ignore[arg-type]
    if data is None or weight is None or not weight.is_weight or weight.block or data.axis is not None:
        return None
    adder, index = layer, 2
    if layer.op_type == "MatMul":
        uses = list(layer.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.graph is not layer.graph:
            return None
        adder, index = uses[0].node, 1 - uses[0].idx
    value = adder.inputs[index] if len(adder.inputs) > index else None
    array = constant(value)
    if value is None or array is None or array.dtype != np.float32 or array.ndim != 1:
        return None
    if layer.op_type == "MatMul" and masks(array):
        return None
    if weight.axis is not None and array.size != weight.scales.size:  # one number for all channels
        return None
    return Bias(layer, adder, index, value, data, weight)
