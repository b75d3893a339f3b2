"""Subgraphs: the nodes between some values and others, and a model of their own made of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import onnx_ir as ir

from onnxqat.graph.nesting import captured_values


def read(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, those that its branches capture included."""
    return [value for value in (*node.inputs, *captured_values(node)) if value is not None]


def readers(nodes: Iterable[ir.Node]) -> dict[ir.Value, set[ir.Node]]:
    """The nodes that read each value."""
    found: dict[ir.Value, set[ir.Node]] = {}
    for node in nodes:
        for value in read(node):
            found.setdefault(value, set()).add(node)
    return found


def between(graph: ir.Graph, given: Container[ir.Value], wanted: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that compute the wanted values from the given ones, in order of execution."""
    nodes, needed = [], {value for value in wanted if value not in given}
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(value for value in read(node) if value not in given)
    return nodes[::-1]


def constant_nodes(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes, of a list in order of execution, that no input of the model reaches."""
    found: set[ir.Node] = set()
    for node in nodes:
        if all(value.is_initializer() or value.producer() in found for value in read(node)):
            found.add(node)
    return found


def subgraph(
    model: ir.Model, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> ir.Model:
    """A model of these nodes; it shares nodes, values and initializers with `model`, so it is for writing out only."""
    graph = model.graph
    used = {value for node in nodes for value in read(node)}
    view = ir.GraphView(
        inputs,
        outputs,
        nodes=nodes,
        initializers=[value for value in graph.initializers.values() if value in used],
        opset_imports=graph.opset_imports,
        name=graph.name,
    )
    return ir.Model(view, ir_version=model.ir_version, metadata_props=dict(model.metadata_props))  # type: ignore[arg-type]
