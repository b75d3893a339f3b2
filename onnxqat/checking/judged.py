"""A model as the rules see it: its graph, its quantizers, and the target that judges it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.checking.structure import Quantizers, is_integer
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import sole_user
from onnxqat.graph.qdq import Quantizer
from onnxqat.graph.without import TARGET
from onnxqat.targets import Target


@dataclass(frozen=True, eq=False)
class Judged:
    """A model under judgement.

    Attributes:
        model: the model, with inferred types.
        target: the target.
        quantized: its quantizers by the value they give.
    """

    model: ir.Model
    target: Target
    quantized: Quantizers

    @property
    def weighted(self) -> Iterator[ir.Node]:
        """Layers with a constant weight that the target has integer kernels for."""
        for node in self.model.graph:
            if node.op_type in self.target.weighted and self.weight_of(node) is not None:
                yield node

    def weight_of(self, node: ir.Node) -> Quantizer | ir.Value | None:
        """The quantizer of a layer's weight, or the float constant; None where it is computed."""
        value = node.inputs[1] if len(node.inputs) > 1 else None
        if value is None:
            return None
        quantizer = self.quantized.get(value)
        if quantizer is not None:
            return quantizer if quantizer.is_weight or quantizer.quantize is None else None
        return value if constant(value) is not None else None

    def reads_integers(self, node: ir.Node) -> bool:
        """Whether a layer reads integers on both sides."""
        return all(is_integer(value, self.quantized, self.target) for value in node.inputs[:2])

    def purpose(self, node: ir.Node) -> str:
        """Returns why `insert` left a node in float, where it did so for this target; "" otherwise."""
        own = self.model.metadata_props.get(TARGET) == self.target.name
        return str(node.metadata_props.get("onnxqat.float", "")) if own else ""

    def is_activation(self, quantizer: Quantizer) -> bool:
        """Whether what is quantized is computed at run time."""
        return quantizer.quantize is not None and not quantizer.is_weight

    def behind(self, node: ir.Node) -> ir.Value:
        """Output of a layer, behind its bias and the activations that its kernel takes in."""
        value = node.outputs[0]
        user = sole_user(value)
        if node.op_type == "MatMul" and user is not None and user.op_type == "Add" and _adds_a_bias(user, value):
            value = user.outputs[0]
            user = sole_user(value)
        while user is not None and user.op_type in self.target.absorbs:
            value = user.outputs[0]
            user = sole_user(value)
        return value


def _adds_a_bias(add: ir.Node, value: ir.Value) -> bool:
    other = next((constant(one) for one in add.inputs if one is not value), None)
    return other is not None and other.ndim == 1
