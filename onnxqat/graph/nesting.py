"""Graphs inside nodes: the branches of `If`, the bodies of `Loop` and `Scan`, and what they read from around them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs directly inside the node."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """All nodes inside the node, at any depth."""
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def captured_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the outer values that the node's subgraphs use."""
    for graph in subgraphs(node):
        inside = [graph, *graph.subgraphs()]
        own = {value for one in inside for value in (*one.inputs, *one.initializers.values())}
        own.update(value for inner in graph.all_nodes() for value in inner.outputs)
        for inner in graph.all_nodes():
            yield from (value for value in inner.inputs if value is not None and value not in own)
        for one in inside:
            yield from (value for value in one.outputs if value not in own)


def owners(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """For every node, at any depth, the node of the graph itself that it is inside; a node of the graph owns itself."""
    return {inner: node for node in graph for inner in (node, *inner_nodes(node))}
