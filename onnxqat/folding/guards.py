"""Layers with a float side, kept apart from what ONNX Runtime would join them with.

Between two pairs, with nothing but a Relu or Clip in front of the second, ONNX Runtime 1.32 quantizes a Conv, ConvTranspose or
Gemm by itself, weight and bias. A Max of one value, which is that value, ends its search and costs one copy.

Its kernel for weights in blocks takes no quantizer on either side, no Gemm that it has made one with an activation, and no MatMul
with a Relu right behind it (1.32).
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxqat.graph.apart import guarded, put_guard
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import sole_user
from onnxqat.graph.movement import origin
from onnxqat.graph.qdq import Quantizer
from onnxqat.targets.facts import operators
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU

#: Activations that it joins with a Gemm, or looks past from a MatMul.
JOINED = operators("Clip Elu HardSigmoid LeakyRelu Relu Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu")


def guard_float_layers(graph: ir.Graph) -> None:
    """Puts a guard behind each float layer that stands between two pairs."""
    for node in list(graph):
        end = _end_of_layer(node)
        if end is not None and _is_dequantized(node.inputs[0]) and _is_quantized(end):
            put_guard(graph, end)


def guard_blocks(graph: ir.Graph, found: Iterable[Quantizer]) -> None:
    """Puts guards around the layers whose weights are in blocks, where something stands that would keep them in float."""
    layers = [use.node for quantizer in found if quantizer.block for use in quantizer.output.uses()]
    for node in [node for node in layers if node.op_type in ("Gemm", "MatMul")]:
        data, end = node.inputs[0], _behind_bias(node)
        if data is not None and _is_dequantized(data):
            node.replace_input_with(0, guarded(graph, data, node))
        user = sole_user(end)
        if _is_quantized(end) or (user is not None and user.op_type in JOINED and _is_joined(node, end)):
            put_guard(graph, end)


def _behind_bias(node: ir.Node) -> ir.Value:
    user = sole_user(node.outputs[0])
    return (
        user.outputs[0] if node.op_type == "MatMul" and user is not None and user.op_type == "Add" else node.outputs[0]
    )


def _is_joined(node: ir.Node, end: ir.Value) -> bool:
    """Whether ONNX Runtime would join the layer with an activation; not a MatMul with a bias on data of more than two axes."""
    shape = node.outputs[0].shape
    return node.outputs[0] is end or shape is None or shape.rank() == 2


def _end_of_layer(node: ir.Node) -> ir.Value | None:
    """Returns the output of a layer with a float weight, behind its bias and activation; None for other nodes."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or constant(node.inputs[1]) is None:
        return None
    value = node.outputs[0]
    passed = {"Relu", "Clip", "Add"} if node.op_type == "MatMul" else {"Relu", "Clip"}
    while (user := sole_user(value)) is not None and user.op_type in passed:
        passed -= {"Add"}
        value = user.outputs[0]
    return value


def _is_quantized(value: ir.Value) -> bool:
    """Whether only a QuantizeLinear reads the value, possibly by way of carriers."""
    user = sole_user(value)
    while user is not None and user.op_type in ORT_CPU.operators.carries:
        user = sole_user(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear"


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether the value comes out of a DequantizeLinear, possibly by way of carriers."""
    node = None if value is None else origin(value, operators=ORT_CPU.operators.carries).producer()
    return node is not None and node.op_type == "DequantizeLinear"
