"""Parts of a graph as graphs of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.graph.nesting import captured_values, inner_nodes


def cut(model: ir.Model, given: Mapping[str, ir.DataType], wanted: Sequence[str]) -> ir.Model:
    """The part of a graph that computes the values `wanted` where those named in `given` come as inputs."""
    part = model.clone()
    graph = part.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs[:] = [values[name] for name in wanted]
    for name, dtype in given.items():
        computed = values[name]
        fed = ir.Value(name=name, type=ir.TensorType(dtype), shape=computed.shape)
        ir.convenience.replace_all_uses_with(computed, fed)
        computed.name = f"{name}/computed"
        graph.inputs.append(fed)
    _detach(part.graph)
    passes.RemoveUnusedNodesPass()(part)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    passes.RemoveUnusedOpsetsPass()(part)
    return part


def _detach(graph: ir.Graph) -> None:
    """Takes from the bodies of unneeded nodes what they read: after these nodes they would still count as its users."""
    needed = ancestors(graph, {str(value.name) for value in graph.outputs})
    for node in graph:
        if node not in needed:
            for inner in inner_nodes(node):
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)


def ancestors(graph: ir.Graph, names: set[str]) -> set[ir.Node]:
    """All nodes on which the named values depend."""
    pending = [node for node in graph if any(output.name in names for output in node.outputs)]
    reached: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node in reached:
            continue
        reached.add(node)
        producers = (value.producer() for value in (*node.inputs, *captured_values(node)) if value is not None)
        pending.extend(producer for producer in producers if producer is not None)
    return reached
