"""Biases of integer layers: where they stand, and the grid sx · sw on which an integer kernel adds them.

The kernel adds the bias to its int32 accumulator, whose unit is the product of the scales of data and weight (Jacob et al.
2018, section 2.4). At 8 bits the grid is fine; at 4 bits and fewer it is so coarse that rounding to it changes answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.movement import moved
from onnxqat.graph.qdq import Quantizer, by_output, constant, quantizers

WEIGHTED = ("Conv", "Gemm", "MatMul")
#: Metadata of a model: whether its biases are deployed as "int32" or "float".
DEPLOYED_AS = "onnxqat.bias"


@dataclass(frozen=True, eq=False)
class Bias:
    """A constant float bias of a layer that reads integers on both sides.

    Attributes:
        layer: the Conv, Gemm or MatMul.
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

    @property
    def codes(self) -> NDArray[np.float64]:
        """Where on its grid it lies, of the bias's shape; what is beyond int32 or not finite is the caller's to judge."""
        with np.errstate(divide="ignore", invalid="ignore"):  # scales that underflow to 0
            return np.asarray(np.rint(self.array.astype(np.float64) / self.step))


def biases_are_integers(model: ir.Model) -> bool:
    """Whether the model's target takes biases as int32 rather than float."""
    return model.metadata_props.get(DEPLOYED_AS, "int32") == "int32"


def integer_biases(model: ir.Model) -> list[Bias]:
    """The biases that become int32 when the model is folded; none where its target takes them in float."""
    if not biases_are_integers(model):
        return []
    produced_by = by_output(quantizers(model))
    found = (_bias(node, produced_by) for node in model.graph if node.op_type in WEIGHTED)
    return [bias for bias in found if bias is not None]


def _bias(layer: ir.Node, produced_by: dict[ir.Value, Quantizer]) -> Bias | None:
    data, weight = _quantizer_above(layer.inputs[0], produced_by), produced_by.get(layer.inputs[1])  # type: ignore[arg-type]
    if data is None or weight is None or not weight.is_weight or data.axis is not None:
        return None
    adder, index = layer, 2
    if layer.op_type == "MatMul":
        uses = list(layer.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        adder, index = uses[0].node, 1 - uses[0].idx
    value = adder.inputs[index] if len(adder.inputs) > index else None
    array = constant(value)
    if value is None or array is None or array.dtype != np.float32 or (layer.op_type == "MatMul" and array.ndim != 1):
        return None
    return Bias(layer, adder, index, value, data, weight)


def _quantizer_above(value: ir.Value | None, produced_by: dict[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer whose scale `value` has: its producer, or the one above data movement."""
    while value is not None and value not in produced_by:
        node = value.producer()
        value = None if node is None else moved(node)
    return None if value is None else produced_by[value]
