"""The fusion report of QNN, read from the graphs that it gave the NPU: operators keep the names of nodes and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxqat.graph.naming import name_of
from onnxqat.verification import fusion
from onnxqat.verification.blockers import qnn_blockers
from onnxqat.verification.fusion import Kernel, Kind, Placed

#: Operators that only bring data into another form; a node of the model that they stand for has none of its own.
_SIDE = frozenset({"Transpose", "Reshape", "Quantize", "Dequantize", "Convert", "Cast"})


def report(deployed: ir.Model, answer: dict[str, Any]) -> list[Kernel]:
    """Returns the fate of each node.

    Args:
        deployed: the deployed model.
        answer: operators of the NPU and nodes on the CPU, of its marked copy (see `qnn.executed`).
    """
    by_node, on_cpu = _by_node(answer["operators"]), {n for name in answer["cpu"] for n in fusion.marks_of_nodes(name)}
    nodes, quantized = list(deployed.graph), fusion.quantizers_by_output(deployed)
    kernels = []
    for number, node in fusion.reported(deployed):
        operator, node = by_node.get(number), nodes[number]
        kind: Kind = "absorbed"
        name, reason = "", ""
        if number in on_cpu:
            kind, name, reason = "float", "CPU", qnn_blockers(node, quantized, "the CPU computes it")
        elif operator is not None:
            numbers = operator["numbers"]
            kind, name = ("float" if numbers in ("f16", "f32") else "integer"), f"{operator['type']} {numbers}"
            reason = qnn_blockers(node, quantized, f"the NPU computes it in {numbers}") if kind == "float" else ""
        kernels.append(Kernel(name_of(node), node.op_type, name, kind, reason, fusion.purpose(node)))
    return kernels


def placed(deployed: ir.Model, answer: dict[str, Any]) -> Placed:
    """Returns how the model is divided between the NPU and the CPU."""
    nodes = list(deployed.graph)
    numbers = sorted({n for name in answer["cpu"] for n in fusion.marks_of_nodes(name)})
    return Placed(answer["partitions"], tuple(name_of(nodes[number]) for number in numbers), answer["whole"])


def _by_node(operators: list[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The operator that computes each node: the one of its name, or else the one that gives its output."""
    found: dict[int, Mapping[str, Any]] = {}
    for marks in (_marks_of_outputs, _marks_of_name):
        for operator in operators:
            for number in marks(operator):
                if operator["type"] not in _SIDE or number not in found:
                    found[number] = operator
    return found


def _marks_of_name(operator: Mapping[str, Any]) -> list[int]:
    return fusion.marks_of_nodes(operator["name"])


def _marks_of_outputs(operator: Mapping[str, Any]) -> list[int]:
    return [number for name in operator["outputs"] for number in fusion.marks_of_values(name)]
