"""The fusion report of OpenVINO, read from the model it executes: each layer lists the nodes that it computes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxqat.graph.edit import sole_user
from onnxqat.graph.naming import name_of
from onnxqat.verification import fusion
from onnxqat.verification.blockers import openvino_blockers
from onnxqat.verification.fusion import Kernel, Kind

_KINDS: dict[str, Kind] = {"u8": "integer", "i8": "integer", "u4": "weight-only", "i4": "weight-only"}
#: Layers that carry a node's name without computing it.
_SIDE = frozenset({"Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Convert"})
_WEIGHTED = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})


def report(deployed: ir.Model, answer: dict[str, Any]) -> list[Kernel]:
    """Returns the fate of each node.

    Args:
        deployed: the deployed model.
        answer: "layers": the executed layers of its marked copy (see `openvino.executed`).
    """
    by_node = _by_node(answer["layers"])
    nodes = list(deployed.graph)
    numbers = [number for number, _ in fusion.reported(deployed)]
    quantized = fusion.quantizers_by_output(deployed)
    kernels = []
    holders: dict[int, ir.Node] = {}
    for number in numbers:
        node = nodes[number]
        layer = by_node.get(number) or _with_bias(node, nodes, by_node)
        kind: Kind = "absorbed" if layer is None else _KINDS.get(layer["runtimePrecision"], "float")
        holder = holders.setdefault(id(layer), node)
        reason = ""
        if layer is not None and kind == "float":
            precision = layer["runtimePrecision"]
            alone = holder is node
            reason = openvino_blockers(node, quantized, precision) if alone else fusion.together_with(holder)
        name = "" if layer is None else f"{layer['layerType']} {layer['runtimePrecision']}"
        kernels.append(Kernel(name_of(node), node.op_type, name, kind, reason, fusion.purpose(node)))
    return kernels


def _with_bias(node: ir.Node, nodes: list[ir.Node], by_node: dict[int, dict[str, str]]) -> dict[str, str] | None:
    """The layer that computes a MatMul of weights of 4 bits: it is named after the Add of the bias alone."""
    user = sole_user(node.outputs[0]) if node.op_type == "MatMul" else None
    layer = by_node.get(nodes.index(user)) if user is not None and user.op_type == "Add" else None
    return layer if layer is not None and layer["layerType"] == "FullyConnected" else None


def _by_node(layers: list[dict[str, str]]) -> dict[int, dict[str, str]]:
    """The layer that computes each node; of several, the one with weights, else the last."""
    found: dict[int, dict[str, str]] = {}
    for layer in layers:
        if layer["layerType"] in _SIDE:
            continue
        names = layer.get("originalLayersNames", "")
        for number in {*fusion.marks_of_nodes(names), *fusion.marks_of_values(names)}:
            if number not in found or found[number]["layerType"] not in _WEIGHTED:
                found[number] = layer
    return found
