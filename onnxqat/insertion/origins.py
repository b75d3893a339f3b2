"""Follows data movement: upstream to the values that data comes from, the places of quantizers; downstream to what joins it."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.movement import EXTREMES, moved
from onnxqat.insertion.fills import is_filled
from onnxqat.insertion.groups import inputs
from onnxqat.targets import Target


def origins(value: ir.Value, target: Target) -> list[ir.Value]:
    """Returns the values that the data of `value` comes from, upstream of all data movement; several for joined inputs.

    A maximum of data with fill values beside it is an origin: fill values are lost behind it.
    """
    node = value.producer()
    if node is None:
        return [value]
    if node.op_type in target.joins:
        return list(dict.fromkeys(above for source in inputs(node) for above in origins(source, target)))
    source = moved(node, target.moves)
    if source is None:
        return [value]
    found = origins(source, target)
    return [value] if node.op_type in EXTREMES and any(map(is_filled, found)) else found


def is_joined(value: ir.Value, target: Target) -> bool:
    """Whether data movement leads the value to an operator that joins it with others."""
    for node in {use.node for use in value.uses()}:
        if node.op_type in target.joins:
            return True
        if moved(node, target.moves) is value and any(is_joined(output, target) for output in node.outputs):
            return True
    return False
