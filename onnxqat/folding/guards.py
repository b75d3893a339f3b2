"""Layers that stay in float, kept so in every runtime.

Between two pairs, with nothing but a Relu or Clip in front of the second, ONNX Runtime 1.32 quantizes a Conv, ConvTranspose or
Gemm by itself, weight and bias. A Max of one value, which is that value, ends its search and costs one copy.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import fresh_name, fresh_value_name, sole_user
from onnxqat.graph.movement import origin
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU


def guard_float_layers(graph: ir.Graph) -> None:
    """Puts a guard behind each float layer that stands between two pairs."""
    for node in list(graph):
        end = _end_of_layer(node)
        if end is not None and _is_dequantized(node.inputs[0]) and _is_quantized(end):
            _put_guard(graph, end)


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
    while user is not None and user.op_type in ORT_CPU.carries:
        user = sole_user(user.outputs[0])
    return user is not None and user.op_type == "QuantizeLinear"


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether the value comes out of a DequantizeLinear, possibly by way of carriers."""
    node = None if value is None else origin(value, operators=ORT_CPU.carries).producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _put_guard(graph: ir.Graph, value: ir.Value) -> None:
    node = value.producer()
    assert node is not None
    guard = ir.node("Max", [value], name=fresh_name(graph, f"{node.name}_float"))
    output = guard.outputs[0]
    output.name, output.type, output.shape = fresh_value_name(graph, str(guard.name)), value.type, value.shape
    for use in [use for use in value.uses() if use.node is not guard]:
        use.node.replace_input_with(use.idx, output)
    graph.insert_after(node, guard)
