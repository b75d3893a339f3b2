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
            if node.op_type in self.target.operators.weighted and self.weight_of(node) is not None:
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
        if user is not None and self.is_bias_of_product(user):
            value = user.outputs[0]
            user = sole_user(value)
        while user is not None and user.op_type in self.target.operators.absorbs:
            value = user.outputs[0]
            user = sole_user(value)
        return value

    def is_bias_of_product(self, add: ir.Node) -> bool:
        """Whether the node adds a vector of constants, float or int32 codes, to a product of matrices, whose kernel does it."""
        producers = [None if value is None else value.producer() for value in add.inputs]
        products = [index for index, one in enumerate(producers) if one is not None and one.op_type == "MatMul"]
        if add.op_type != "Add" or len(products) != 1:
            return False
        other = add.inputs[1 - products[0]]
        held = self.quantized.get(other) if other is not None else None
        array = constant(held.source if held is not None else other)
        return array is not None and array.ndim == 1
