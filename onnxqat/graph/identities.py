"""Removal of Identity nodes."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.edit import replace_value


def eliminate_identities(model: ir.Model) -> None:
    """Removes Identity nodes, except where an output needs one.

    Its name cannot go to an input, an initializer, another output, or a value from outside a branch.
    """
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Identity" and node.domain in ("", "ai.onnx")]:
            _eliminate(graph, node)


def _eliminate(graph: ir.Graph, node: ir.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        return
    producer = source.producer()
    local = producer is not None and producer.graph is graph and not source.is_graph_output()
    if result.is_graph_output() and not local:
        return
    source.type = source.type or result.type
    source.shape = result.shape if source.shape is None else source.shape
    replace_value(graph, result, source)
    graph.remove(node, safe=True)
