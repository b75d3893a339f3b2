"""The fusion report of a runtime that is not at hand: what the graph's structure says, by the target's table."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.checking.structure import Quantizers, is_integer
from onnxqat.graph.naming import name_of
from onnxqat.targets import Target
from onnxqat.verification import fusion
from onnxqat.verification.fusion import Kernel, Kind


def report(deployed: ir.Model, target: Target) -> list[Kernel]:
    """Returns the fate of each node, as it should be."""
    quantized = fusion.quantizers_by_output(deployed)
    return list(_kernels(deployed, quantized, target))


def _kernels(deployed: ir.Model, quantized: Quantizers, target: Target) -> Iterator[Kernel]:
    nodes = list(deployed.graph)
    for number, _ in fusion.reported(deployed):
        node = nodes[number]
        if node.op_type in target.operators.absorbs | target.operators.joins:
            continue
        sides = [is_integer(value, quantized, target) for value in node.inputs[:2]]
        kind: Kind = "float"
        if node.op_type in target.operators.weighted:
            kind = "integer" if all(sides) else "weight-only" if sides[1] else "float"
        elif node.op_type in target.operators.integer and any(sides):
            kind = "integer"
        why = fusion.purpose(node)
        reason = "" if kind == "integer" or why else _reason(node, quantized, target)
        yield Kernel(name_of(node), node.op_type, f"{node.op_type}, by structure", kind, reason, why)


def _reason(node: ir.Node, quantized: Quantizers, target: Target) -> str:
    if node.op_type not in target.operators.kernels:
        return f"{target.name} has no integer kernel for {node.op_type}"
    bare = [
        repr(value.name) for value in node.inputs[:2] if value is not None and not is_integer(value, quantized, target)
    ]
    return f"reads {' and '.join(bare)} without a DequantizeLinear"
