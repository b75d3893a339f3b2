"""Operators with a weight: Conv and ConvTranspose of any rank and grouping, Gemm, MatMul."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import sole_user
from onnxqat.insertion.groups import Group, Skip, inputs, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """Conv, ConvTranspose, Gemm and MatMul by a constant: the data and the weight become integers."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    if not is_float(data):
        return Skip(node, f"data {data.name!r} is not float32")
    if constant(weight) is None:
        if node.op_type == "MatMul":
            return _product(node, data, weight, target)
        return Skip(node, f"weight {weight.name!r} is computed at run time")
    reason = _gemm_obstacle(node) if node.op_type == "Gemm" else None
    if reason is not None:
        return Skip(node, reason)
    return Group(node, (data,), _behind_bias(node), weight, _output_channel_axis(node, weight))


def _behind_bias(node: ir.Node) -> ir.Value:
    """MatMul writes its bias as an Add of its own; the kernel takes both."""
    user = sole_user(node.outputs[0])
    if node.op_type != "MatMul" or user is None or user.op_type != "Add":
        return node.outputs[0]
    bias = next((constant(v) for v in inputs(user) if v is not node.outputs[0]), None)
    return user.outputs[0] if bias is not None and bias.ndim == 1 else node.outputs[0]


def _product(node: ir.Node, left: ir.Value, right: ir.Value, target: Target) -> Group | Skip:
    """MatMul of two activations, as in attention."""
    producer = left.producer()
    if producer is not None and producer.op_type == "Softmax" and not target.placement.softmax_product:
        return Skip(node, attention_reason(target))
    if constant(left) is not None and not target.placement.whole:
        return Skip(node, f"its constant {left.name!r} is on the left; kernels take weights on the right")
    constants = tuple(value for value in (left, right) if constant(value) is not None)
    reads = tuple(value for value in (left, right) if value not in constants)
    return Group(node, reads, node.outputs[0], constants=constants)


def attention_reason(target: Target) -> str:
    """Returns why the product of attention probabilities and values stays in float."""
    return f"attention probabilities stay in float on {target.name}"


def _gemm_obstacle(node: ir.Node) -> str | None:
    for name, needed in (("alpha", 1.0), ("beta", 1.0)):
        found = node.attributes[name].as_float() if name in node.attributes else 1.0
        if found != needed:
            return f"{name} is {found}; the integer kernel takes 1"
    if "transA" in node.attributes and node.attributes["transA"].as_int():
        return "its data is transposed (transA); the integer kernel takes it as it is"
    return None


def _output_channel_axis(node: ir.Node, weight: ir.Value) -> int | None:
    """Axis along which kernels take a scale per output channel; None for MatMul by anything but a matrix."""
    rank = constant(weight).ndim  # type: ignore[union-attr]
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    return 1 if rank == 2 else None


MATCHERS = dict.fromkeys(["Conv", "ConvTranspose", "Gemm", "MatMul"], match)
