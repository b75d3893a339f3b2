"""Rewrites nodes of the forward graph so that they can be differentiated: as other operators, or with all their outputs."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.autodiff.path import Step
from onnxqat.autodiff.rule import Call, Differentiable, Expanded
from onnxqat.graph.ops import Ops, set_types


def expand(graph: ir.Graph, step: Step, rule: Expanded, opset: int) -> None:
    """Replaces the node by its formula's nodes, whose names begin with the node's own."""
    node = step.node
    op = Ops(opset)
    call = Call(node.op_type, tuple(node.inputs), tuple(node.outputs), node.attributes, opset, step.inputs)
    results = rule.formula(op, call)
    values = [results] if isinstance(results, ir.Value) else list(results)
    made = {value for new in op.nodes for value in new.outputs}
    values = [value if value in made else op.Identity(value) for value in values]
    new = op.named(str(node.name))
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs[: len(values)], values)


def complete_outputs(step: Step, opset: int) -> None:
    """Gives the node the optional outputs that its gradient needs."""
    node, count = step.node, step.rule.outputs if isinstance(step.rule, Differentiable) else 0
    if count > len(node.outputs):
        node.resize_outputs(count)
    for index, value in enumerate(node.outputs[:count]):
        value.name = value.name or f"{node.name}/output_{index}"
    set_types(node, opset)
