"""Data movement: operators whose every output element is an input element (or zero), so that one scale serves both sides."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.graph.qdq import Quantizer, constant

MOVEMENT = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def moved(node: ir.Node, operators: frozenset[str] = MOVEMENT) -> ir.Value | None:
    """The data input of a node that only moves data, if its operator is among `operators`; None otherwise."""
    if node.op_type not in operators:
        return None
    if node.op_type == "Pad" and not _pads_with_zero(node):
        return None
    if node.op_type == "Resize" and _mode(node, "nearest") != "nearest":
        return None
    return node.inputs[0]


def quantizer_above(value: ir.Value | None, produced_by: Mapping[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer whose scale `value` has: its producer, or the one above data movement."""
    while value is not None and value not in produced_by:
        node = value.producer()
        value = None if node is None else moved(node)
    return None if value is None else produced_by[value]


def _mode(node: ir.Node, default: str) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else default


def _pads_with_zero(node: ir.Node) -> bool:
    if _mode(node, "constant") != "constant":
        return True
    fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    omitted = len(node.inputs) < 3 or node.inputs[2] is None
    return omitted or (fill is not None and float(fill) == 0.0)
