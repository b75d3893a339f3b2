"""Removal of Identity nodes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes


def eliminate_identities(model: ir.Model) -> None:
    """Removes Identity nodes, except where a subgraph needs one to return a value from outside itself."""
    passes.IdentityEliminationPass()(model)
    for number, graph in enumerate(model.graph.subgraphs()):
        own = {value for node in graph for value in node.outputs} | set(graph.inputs)
        for index, value in enumerate(graph.outputs):
            if value not in own and value.name not in graph.initializers:
                node = ir.node("Identity", [value], name=f"{value.name}/returned_{number}_{index}")
                node.outputs[0].name = node.name
                node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
                graph.append(node)
                graph.outputs[index] = node.outputs[0]
