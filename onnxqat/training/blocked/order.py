"""Tells nodes to which the order of their data's elements does not matter, or only by whole blocks of channels."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.ops import same_shape
from onnxqat.training.quantizers import fakequant

#: Operators that treat all elements alike.
_ELEMENTWISE = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
    }
)
_JOINTS = frozenset({"Concat", "Split", "SplitTraining"})
#: Types of values that can be brought back into the plain layout, by way of float32 where they are not that.
_REORDERED = frozenset({ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8})
_RANK = 4  # of blocked data
_MICROSOFT = frozenset({"FakeQuantGrad", "ReluGrad", "LeakyReluGrad", "SigmoidGrad", "TanhGrad", "Scale"})


def disregards_order(node: ir.Node, data: ir.Value, model: ir.Model) -> bool:
    """Whether the node gives the same results in another order of the elements of `data`, in that order or summed.

    All of its inputs must then have the shape of `data`, or be one number, and so must its results.
    """
    if not _is_alike(node, model):
        return False
    function = bool(node.domain) and node.op_identifier() in model.functions
    results = [value for value in node.outputs if value.name] if function else []
    read = [value for value in node.inputs if value is not None]
    if any(value.dtype not in _REORDERED for value in (*(results or node.outputs), *read) if value.name):
        return False
    return all(gives_data(value, data) or _is_number(value) for value in (*read, *results))


def results_in_order(node: ir.Node, data: ir.Value, model: ir.Model) -> list[ir.Value]:
    """Results of such a node that have the shape of `data`."""
    if node.op_identifier() not in model.functions:
        return list(node.outputs)
    return [value for value in node.outputs if value.name and gives_data(value, data)]


def moves_blocks(node: ir.Node, block: int) -> bool:
    """Whether the node joins or splits channels, and all it reads and gives are whole blocks of them."""
    if node.op_type not in _JOINTS or node.attributes.get_int("axis", 0) not in (1, 1 - _RANK):
        return False
    data = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype == ir.DataType.FLOAT]
    shapes = [value.shape for value in data if value.shape is not None and len(value.shape) == _RANK]
    return len(shapes) == len(data) and all(isinstance(shape[1], int) and shape[1] % block == 0 for shape in shapes)


def gives_data(value: ir.Value, data: ir.Value) -> bool:
    """Whether the value has the shape of `data`."""
    return value is data or same_shape(value, data)


def _is_alike(node: ir.Node, model: ir.Model) -> bool:
    if node.domain in ("", "com.microsoft"):
        return node.op_type in (_MICROSOFT if node.domain else _ELEMENTWISE)
    if node.domain == fakequant.DOMAIN:
        return True
    function = model.functions.get(node.op_identifier())
    return function is not None and all(_is_inner(inner) for inner in function)


def _is_inner(node: ir.Node) -> bool:
    if node.op_type == "Constant":
        tensor = node.attributes.get_tensor("value", None)
        return tensor is not None and tensor.size == 1
    return node.op_type in (_MICROSOFT if node.domain == "com.microsoft" else _ELEMENTWISE)


def _is_number(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) <= _RANK and all(size == 1 for size in value.shape)
