"""Where a quantizer goes: above all data movement, at the value that the data comes from."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.movement import moved
from onnxqat.insert.groups import inputs
from onnxqat.insert.targets import Target


def origins(value: ir.Value, target: Target) -> list[ir.Value]:
    """Where the data of `value` comes from, above all data movement; several where inputs are joined under one scale."""
    node = value.producer()
    if node is None:
        return [value]
    if node.op_type in target.joins:
        return list(dict.fromkeys(above for source in inputs(node) for above in origins(source, target)))
    source = moved(node, target.moves)
    return [value] if source is None else origins(source, target)
