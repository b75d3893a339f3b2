"""Data movement: operators whose every output element is an input element (or zero), so that one scale serves both sides.

This is the one table of them, by what they do with the elements, and the one way up through them (`origin`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.qdq import Quantizer

#: All elements, in the same order, in another shape or in another order of axes.
REARRANGING = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
#: All elements, between channels and places.
BLOCKS = frozenset({"DepthToSpace", "SpaceToDepth"})
#: Some of the elements.
SELECTING = frozenset({"Gather", "GatherElements", "Slice", "Split"})
#: All elements, with copies of some of them, or zeros, beside them.
REPEATING = frozenset({"Expand", "Pad", "Resize", "Tile"})
#: One extreme of many elements.
EXTREMES = frozenset({"GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMin"})

MOVEMENT = REARRANGING | BLOCKS | SELECTING | REPEATING | EXTREMES | {"Identity"}


def moved(node: ir.Node, operators: frozenset[str] = MOVEMENT) -> ir.Value | None:
    """The data input of a node that only moves data, if its operator is among `operators`; None otherwise."""
    if node.op_type not in operators:
        return None
    if node.op_type == "Pad" and not _pads_with_zero(node):
        return None
    if node.op_type == "Resize" and _mode(node, "nearest") != "nearest":
        return None
    return node.inputs[0]


def origin(value: ir.Value, known: Container[ir.Value] = (), operators: frozenset[str] = MOVEMENT) -> ir.Value:
    """Origin of a value: the first of the `known` ones above it, or else the one that no data movement gives.

    Args:
        value: where to begin.
        known: values to stop at.
        operators: what counts as data movement.
    """
    while value not in known:
        node = value.producer()
        above = None if node is None else moved(node, operators)
        if above is None:
            return value
        value = above
    return value


def quantizer_above(value: ir.Value | None, produced_by: Mapping[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer whose scale `value` has: its producer, or the one above data movement, or any of those that a Concat joins.

    Values that a Concat joins on several grids have none.
    """
    if value is None:
        return None
    source = origin(value, produced_by)
    node = source.producer()
    if source in produced_by or node is None or node.op_type != "Concat":
        return produced_by.get(source)
    joined = [quantizer_above(part, produced_by) for part in node.inputs]
    one_grid = None not in joined and len({part.same_grid_key for part in joined if part is not None}) == 1
    return joined[0] if one_grid else None


def _mode(node: ir.Node, default: str) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else default


def _pads_with_zero(node: ir.Node) -> bool:
    if _mode(node, "constant") != "constant":
        return True
    fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    omitted = len(node.inputs) < 3 or node.inputs[2] is None
    return omitted or (fill is not None and float(fill) == 0.0)
