"""Reverse mode: from the loss back to the parameters, each node's gradient formula is written behind the forward graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxqat.autodiff.names import SUFFIX
from onnxqat.autodiff.path import Step
from onnxqat.autodiff.rule import Call, Custom
from onnxqat.graph.edit import fresh_value_name
from onnxqat.graph.ops import Ops


def accumulate(graph: ir.Graph, loss: ir.Value, steps: Sequence[Step]) -> dict[ir.Value, ir.Value]:
    """Extends the graph, in place, by the gradient of the loss with respect to every value on the path to it.

    A value that several nodes read gets the sum of what they contribute, in the reverse of their order.

    Args:
        graph: the forward graph.
        loss: a float scalar in it.
        steps: the path to the loss, in the order of the graph; the rule of each is `Custom`.

    Returns:
        The gradients by the values that they belong to, of the same shape and type.
    """
    opset = graph.opset_imports[""]
    op = Ops(opset)
    found = {loss: op.like(1.0, loss)}
    graph.extend(op.named(f"{loss.name}/backward"))
    for step in reversed(steps):
        op = Ops(opset)
        for value, gradient in _contributions(op, step, found):
            total = op.Add(found[value], gradient) if value in found else gradient
            if total.name is None:  # another value's gradient keeps its name
                total.name = fresh_value_name(graph, f"{value.name}{SUFFIX}")
                total.type, total.shape = value.type, None if value.shape is None else value.shape.copy()
            found[value] = total
        graph.extend(op.named(f"{step.node.name}/backward"))
    return found


def _contributions(op: Ops, step: Step, found: dict[ir.Value, ir.Value]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Writes the node's formula; yields inputs through which the gradient flows, with their share of it."""
    node, rule = step.node, step.rule
    upstream = [found.get(value) for value in node.outputs]
    if not any(upstream):
        return
    assert isinstance(rule, Custom)
    call = Call(node.op_type, tuple(node.inputs), tuple(node.outputs), node.attributes, op.opset, step.inputs)
    written = rule.gradient(op, call, *upstream)
    gradients = [written] if isinstance(written, ir.Value) else written
    for index in sorted(step.inputs):
        gradient = gradients[index]
        assert gradient is not None, f"{node.op_type}: its rule promises a gradient for input {index} and gives none"
        yield call.required(index), gradient
