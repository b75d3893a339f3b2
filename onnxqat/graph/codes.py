"""Quantized models of other tools in the form that all stages know: quantizers on floats, data movement on floats between them.

Converters and runtimes move codes: Q → MaxPool → DQ, or a stored weight through a Transpose.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value
from onnxqat.graph.movement import MOVEMENT
from onnxqat.graph.naming import name_of

#: Places of scale and zero point among the inputs of QuantizeLinear and DequantizeLinear.
_GRID = slice(1, None)


def move_floats(model: ir.Model) -> None:
    """Lets data movement between a QuantizeLinear and its DequantizeLinear move floats, in place; answers stay the same.

    A pair of the same grid comes behind it, so that runtimes still run it on integers. Stored codes are moved here and now. Nodes
    without a name get the name of their output, so that messages can name them.
    """
    graph = model.graph
    nodes = [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if not nodes:
        return
    for node in graph:
        if not node.name:
            node.name = fresh_name(graph, name_of(node))
    _move_stored(model)
    grids: dict[ir.Value, ir.Node] = {}
    for node in list(graph):
        if node.op_type == "QuantizeLinear" and _is_per_tensor(node):
            grids[node.outputs[0]] = node
        elif node.inputs and node.inputs[0] in grids and node.op_type == "Clip":
            grids[node.outputs[0]] = grids[node.inputs[0]]
        elif _moves(node, grids):
            _float_inside(graph, node, grids)


def _is_per_tensor(node: ir.Node) -> bool:
    scale = constant(node.inputs[1])
    return scale is not None and scale.size == 1


def _moves(node: ir.Node, grids: dict[ir.Value, ir.Node]) -> bool:
    """Whether the node moves codes of one known grid, and nothing else."""
    if node.op_type == "Concat":
        given = {tuple(grids[v].inputs[_GRID]) if v in grids else None for v in node.inputs if v is not None}
        return len(given) == 1 and None not in given
    linear = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest"
    return node.op_type in MOVEMENT and bool(node.inputs) and node.inputs[0] in grids and not linear


def _move_stored(model: ir.Model) -> None:
    """Moves codes that are stored."""
    stored = {value for value in model.graph.initializers.values() if not value.is_graph_input()}
    chosen: set[ir.Node] = set()
    read = {node.inputs[0] for node in model.graph if node.op_type == "DequantizeLinear"}
    for node in model.graph:
        if node.op_type in MOVEMENT and all(v is None or v in stored for v in node.inputs):
            chosen.add(node)
            stored.update(node.outputs)
    if not any(value in read for node in chosen for value in node.outputs):
        return
    limits = {"input_size_limit": 2**31, "output_size_limit": 2**31}
    optimizer.fold_constants(model, should_fold=lambda node: node in chosen, **limits)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _float_inside(graph: ir.Graph, node: ir.Node, grids: dict[ir.Value, ir.Node]) -> None:
    quantize = next(grids[value] for value in node.inputs if value in grids)
    for index, value in enumerate(node.inputs):
        if value in grids and (index == 0 or node.op_type == "Concat"):
            node.replace_input_with(index, _beside(graph, node, "DequantizeLinear", value, quantize))
    if node.op_type == "Pad":
        _fill_in_float(graph, node, quantize)
    moved = node.outputs[:1] if node.op_type == "MaxPool" else node.outputs
    for result in [value for value in moved if value.name]:
        codes = _beside(graph, node, "QuantizeLinear", None, quantize)
        codes.shape = result.shape
        replace_value(graph, result, codes)
        writer = codes.producer()
        assert writer is not None
        writer.replace_input_with(0, result)
        result.dtype = ir.DataType.FLOAT
        grids[codes] = quantize


def _beside(graph: ir.Graph, node: ir.Node, operator: str, value: ir.Value | None, quantize: ir.Node) -> ir.Value:
    """Adds a QuantizeLinear or DequantizeLinear of the quantizer's grid before or behind a node; its input may be set later."""
    new = ir.node(operator, [value, *quantize.inputs[_GRID]], name=fresh_name(graph, f"{node.name}_{operator}"))
    result = new.outputs[0]
    result.name = fresh_value_name(graph, str(new.name))
    if value is None:
        zero_point = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
        result.dtype = ir.DataType.UINT8 if zero_point is None else ir.DataType.from_numpy(zero_point.dtype)
        graph.insert_after(node, new)
    else:
        result.dtype, result.shape = ir.DataType.FLOAT, value.shape
        graph.insert_before(node, new)
    return result


def _fill_in_float(graph: ir.Graph, node: ir.Node, quantize: ir.Node) -> None:
    """The number behind the code that a Pad fills in; 0 where none is given."""
    fill = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
    scale, zero = (
        constant(quantize.inputs[1]),
        constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else np.zeros(1),
    )
    if fill is None or scale is None or zero is None:
        return
    number = (float(fill.item()) - float(zero.item())) * float(scale.item())
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, constant_value(graph, f"{node.name}_fill", np.asarray(number, np.float32)))
