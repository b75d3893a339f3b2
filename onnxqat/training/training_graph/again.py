"""Cheap values that are computed a second time for the backward pass, so that they are not kept for it.

Where an operator costs next to nothing and all that it reads is kept anyway, its result need not be: a sum of two kept values, a
kept value divided by a constant, or transposed. The second result is the first to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import onnx_ir as ir

#: Operators of less than a nanosecond for each number.
_CHEAP = frozenset({"Add", "Div", "Mul", "Neg", "Sub", "Transpose"})
#: Operators whose result lies where their data does.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
#: Cheap operators in a row that are run again for one value.
_DEPTH = 2


def compute_again(graph: ir.Graph, forward: Collection[ir.Node]) -> None:
    """Gives backward nodes second results of cheap forward nodes, each right before it is first read; in place.

    Args:
        graph: a training graph in its order of execution, whose functions are inlined.
        forward: the nodes of the forward pass.
    """
    position = {node: index for index, node in enumerate(graph)}
    kept = {value for node in forward for value in node.outputs if _later(value, position, forward)}
    for node in [node for node in graph if node in forward and node.op_type in _CHEAP]:
        (value,) = node.outputs
        later = _later(value, position, forward)
        if not later or value.is_graph_output() or value.dtype not in (None, ir.DataType.FLOAT):
            continue
        if any(use.node not in position for use in value.uses()) or not _at_hand(value, kept - {value}, _DEPTH):
            continue
        kept.discard(value)
        first = min((use.node for use in later), key=position.__getitem__)
        copies: list[ir.Node] = []
        again = _copied(value, kept, copies, f"{node.name}_again_{position[node]}")
        graph.insert_before(first, copies)
        for use in later:
            use.node.replace_input_with(use.idx, again)


def _later(value: ir.Value, position: Collection[ir.Node], forward: Collection[ir.Node]) -> list[Any]:
    """Uses in the backward pass; a value is not kept for its shape, which ONNX Runtime takes as soon as it is there."""
    uses = (use for use in value.uses() if use.node in position and use.node not in forward)
    return [use for use in uses if use.node.op_type != "Shape"]


def _at_hand(value: ir.Value, kept: Collection[ir.Value], depth: int) -> bool:
    """Whether a value is there in the backward pass, or so many cheap operators away from what is."""
    node = value.producer()
    if node is None or value in kept or node.op_type == "Constant":
        return True
    left = depth - (node.op_type in _CHEAP)
    return left >= 0 and node.op_type in _CHEAP | _VIEWS and all(_at_hand(one, kept, left) for one in _read(node))


def _copied(value: ir.Value, kept: Collection[ir.Value], copies: list[ir.Node], name: str) -> ir.Value:
    node = value.producer()
    if node is None or value in kept or node.op_type == "Constant":
        return value
    inputs = [None if one is None else _copied(one, kept, copies, name) for one in node.inputs]
    copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), name=f"{name}_{len(copies)}")
    (output,) = copy.outputs
    output.name, output.type, output.shape = copy.name, value.type, value.shape
    copies.append(copy)
    return output


def _read(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)
