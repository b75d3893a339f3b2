"""Gemm with its third input as kernels take it: a vector, one number for each output channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value, sole_user


def make_bias_a_vector(graph: ir.Graph) -> None:
    """A constant C that is the same for all rows becomes a vector; one that is not, an Add behind the Gemm. Beta goes into it."""
    for node in [node for node in graph if node.op_type == "Gemm" and len(node.inputs) > 2]:
        bias, weight = constant(node.inputs[2]), constant(node.inputs[1])
        beta = node.attributes.get_float("beta", 1.0)
        if bias is None or weight is None or weight.ndim != 2 or bias.dtype != np.float32:
            continue
        channels = weight.shape[0] if node.attributes.get_int("transB", 0) else weight.shape[1]
        if bias.shape == (channels,) and beta == 1.0:
            continue
        node.attributes.pop("beta", None)
        scaled = bias * np.float32(beta)
        if bias.size in (1, channels) and (bias.ndim < 2 or bias.shape[0] == 1):
            _set_bias(graph, node, np.broadcast_to(scaled.reshape(-1), (channels,)))
        else:
            _add_behind(graph, node, scaled)


def turn_weights(graph: ir.Graph) -> None:
    """Gives each Gemm its weight as [K, N]: ONNX Runtime fuses no blocks into one that transposes its weight (1.32)."""
    for node in [node for node in graph if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1]:
        weight = node.inputs[1]
        array = constant(weight)
        if weight is not None and array is not None and array.ndim == 2 and sole_user(weight) is node:
            node.attributes.pop("transB")
            node.replace_input_with(1, constant_value(graph, f"{weight.name}_transposed", array.T))


def _set_bias(graph: ir.Graph, node: ir.Node, array: NDArray[Any]) -> None:
    old = node.inputs[2]
    assert old is not None
    node.replace_input_with(2, constant_value(graph, f"{old.name}_vector", array))


def _add_behind(graph: ir.Graph, node: ir.Node, array: NDArray[Any]) -> None:
    old, result = node.inputs[2], node.outputs[0]
    assert old is not None
    node.resize_inputs(2)
    add = ir.node("Add", [result], name=fresh_name(graph, f"{node.name}_Add"))
    added = add.outputs[0]
    added.name, added.type, added.shape = fresh_value_name(graph, str(add.name)), result.type, result.shape
    replace_value(graph, result, added)
    add.resize_inputs(2)
    add.replace_input_with(0, result)
    add.replace_input_with(1, constant_value(graph, f"{old.name}_rows", array))
    graph.insert_after(node, add)
