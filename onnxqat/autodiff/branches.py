"""`If` nodes whose condition is known before the model runs: the branch taken replaces the node."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from onnxqat.graph.naming import name_of


def resolve_branches(model: ir.Model) -> None:
    """Replaces, in place, every `If` of the main graph whose condition follows from constants and static shapes.

    Exporters write such conditions about sizes that they could have known. Others stay.
    """
    while nodes := [node for node in model.graph if node.op_type == "If" and node.domain in ("", "ai.onnx")]:
        known = _known_conditions(model, nodes)
        if not known:
            return
        for node, taken in known.items():
            _inline(model.graph, node, "then_branch" if taken else "else_branch")


def _known_conditions(model: ir.Model, nodes: list[ir.Node]) -> dict[ir.Node, bool]:
    """Folds constants in a copy that computes only the conditions: in the model itself, parameters are no constants."""
    copy = model.clone()
    same = dict(zip(model.graph, copy.graph, strict=True))
    copy.graph.outputs[:] = [condition for node in nodes if (condition := same[node].inputs[0]) is not None]
    optimizer.fold_constants(copy, onnx_shape_inference=True)
    found = {}
    for node, condition in zip(nodes, copy.graph.outputs, strict=True):
        tensor = ir.convenience.get_const_tensor(condition)
        if tensor is not None:
            found[node] = bool(tensor.numpy().reshape(-1)[0])
    return found


def _inline(graph: ir.Graph, node: ir.Node, attribute: str) -> None:
    branch = node.attributes[attribute].as_graph()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        value.name = f"{name_of(node)}/{name}"
        graph.register_initializer(value)
    results = list(branch.outputs)
    branch.outputs.clear()
    moved = list(branch)
    branch.remove(moved)
    # The names of the node's outputs stay: they may be the model's.
    ends = [ir.node("Identity", [value]) for value in results]
    outputs = [end.outputs[0] for end in ends]
    for output, value in zip(outputs, node.outputs, strict=True):
        output.type, output.shape = value.type, value.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*moved, *ends], node.outputs, outputs)
