"""Memory that a graph takes for a batch, estimated from the shapes of its values before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.nesting import captured_values


def demand(model: ir.Model, batch: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of all values that live at once, at most, where nodes run in the graph's order.

    A value of unknown shape counts as large as the largest that its node reads; what the user's arrays and the outputs take is
    not counted.
    """
    graph = model.graph
    known = _sizes_of_axes(graph, batch)
    sizes = {value: batch[str(value.name)].nbytes for value in graph.inputs if value.name in batch}
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(_read(node), index))
    held: dict[ir.Value, int] = {}
    total = most = 0
    for index, node in enumerate(nodes):
        read = _read(node)
        largest = max((sizes.get(value, 0) for value in read), default=0)
        for value in node.outputs:
            sizes[value] = _bytes(value, known, largest)
            if not value.is_graph_output() and value in last:
                held[value] = sizes[value]
                total += sizes[value]
        most = max(most, total)
        total -= sum(held.pop(value) for value in read if last[value] == index and value in held)
    return most


def _read(node: ir.Node) -> list[ir.Value]:
    return list(dict.fromkeys(value for value in (*node.inputs, *captured_values(node)) if value is not None))


def _sizes_of_axes(graph: ir.Graph, batch: Mapping[str, NDArray[Any]]) -> dict[str | None, int]:
    """Sizes of the axes that are free in the graph, by name."""
    return {
        axis.value: size
        for value in graph.inputs
        if value.name in batch and value.shape is not None
        for axis, size in zip(value.shape, batch[str(value.name)].shape, strict=False)
        if not isinstance(axis, int)
    }


def _bytes(value: ir.Value, known: Mapping[str | None, int], otherwise: int) -> int:
    if value.shape is None:
        return otherwise
    sizes = [axis if isinstance(axis, int) else known.get(axis.value) for axis in value.shape]
    if None in sizes:
        return otherwise
    width = 4 if value.dtype is None else value.dtype.itemsize
    return int(math.prod(size for size in sizes if size is not None) * width)
