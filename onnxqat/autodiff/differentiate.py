"""Differentiation of a model: what blocks it, and the model that also computes gradients."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff.accumulate import accumulate
from onnxqat.autodiff.functions import add_called
from onnxqat.autodiff.kernels.table import define
from onnxqat.autodiff.names import SUFFIX, reserve_gradient_names
from onnxqat.autodiff.path import Step, may_be_float, trace
from onnxqat.autodiff.prepare import prepare
from onnxqat.autodiff.rewrite import complete_outputs, expand
from onnxqat.autodiff.rule import Expanded, Refused
from onnxqat.autodiff.shapes import zeros
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.edit import make_inputs
from onnxqat.graph.naming import name_of
from onnxqat.graph.nesting import captured_values
from onnxqat.graph.ops import Ops
from onnxqat.graph.types import infer, infer_more

_SHOWN = 12  # names of parameters in a message, at most


@dataclass(frozen=True)
class Blocked:
    """A node that the gradient would have to pass, and cannot.

    Attributes:
        node: the node.
        reason: why it cannot.
        before: names of the parameters whose gradient would have to pass here.
    """

    node: ir.Node
    reason: str
    before: frozenset[str]


def blocked_text(blocked: Sequence[Blocked]) -> str:
    """Names all nodes, those of one operator and reason together, and says what to do."""
    groups: dict[tuple[str, str], list[str]] = {}
    for each in blocked:
        groups.setdefault((_qualified(each.node), each.reason), []).append(f"{name_of(each.node)!r}")
    named = "; ".join(f"{operator} {', '.join(names)}: {reason}" for (operator, reason), names in groups.items())
    before = sorted(frozenset().union(*(each.before for each in blocked)))
    parameters = ", ".join(before[:_SHOWN]) + (f" and {len(before) - _SHOWN} more" if len(before) > _SHOWN else "")
    return (
        f"the gradient cannot pass {len(blocked)} node(s): {named}; freeze what is upstream ({parameters}), "
        "exclude the node (let the model that is trained end before it), or replace it by operators that have a gradient"
    )


def blocking_nodes(model: ir.Model, wrt: Iterable[str]) -> list[Blocked]:
    """Returns every node between the values `wrt` (float inputs, initializers) and a graph output without gradient."""
    prepared = prepare(model)
    parameters = _parameters(prepared.graph, wrt)
    return _blocked(trace(prepared, parameters, prepared.graph.outputs), parameters)


def differentiate(model: ir.Model, loss: str, wrt: Sequence[str]) -> ir.Model:
    """Returns a plain model that computes the model's outputs and `<name>_grad` for every name in `wrt`.

    All operators are standard; what an engine may have faster is a call of a function of them (see `kernels.table`, `lowering`).

    Args:
        model: the forward model, opset 13 to 21; left as it is.
        loss: name of a float scalar in the graph.
        wrt: names of float inputs or initializers; initializers among them become graph inputs of the result.

    Raises:
        UnsupportedModelError: a node on the path has no gradient; the message names all of them.
        InputError: a name is not in the graph.
    """
    result = prepare(model)
    add_called(result)
    graph = result.graph
    reserve_gradient_names(graph, wrt)
    parameters = _parameters(graph, wrt)
    steps = [step for step in _expand_all(result, parameters, _value(graph, loss)) if step.outputs]
    for step in steps:
        complete_outputs(step, graph.opset_imports[""])
    found = accumulate(graph, _value(graph, loss), steps)
    for parameter in parameters:
        _add_output(graph, parameter, found.get(parameter))
    make_inputs(graph, wrt)
    define(result)
    infer_more(result)
    passes.RemoveUnusedNodesPass()(result)
    passes.RemoveUnusedOpsetsPass()(result)
    return result


def _add_output(graph: ir.Graph, parameter: ir.Value, gradient: ir.Value | None) -> None:
    """Gives the gradient its name; where the loss does not depend on the parameter it is zero."""
    name = f"{parameter.name}{SUFFIX}"
    op = Ops(graph.opset_imports[""])
    if gradient is None:
        gradient = zeros(op, op.Shape(parameter), parameter.dtype or ir.DataType.FLOAT)
    elif gradient.is_graph_output():  # it is that of another parameter, too
        gradient = op.Identity(gradient)
    graph.extend(op.named(name))
    gradient.name, gradient.type, gradient.shape = name, parameter.type, parameter.shape
    graph.outputs.append(gradient)


def _expand_all(model: ir.Model, parameters: Sequence[ir.Value], target: ir.Value) -> list[Step]:
    """Replaces nodes by their formulas until none is left to replace, and returns the path to the loss."""
    opset, graph = model.graph.opset_imports[""], model.graph
    name = str(target.name)
    while True:
        steps = trace(model, parameters, [_value(graph, name)])
        blocked = _blocked(steps, parameters)
        if blocked:
            raise UnsupportedModelError(blocked_text(blocked))
        expandable = [(step, step.rule) for step in steps if step.outputs and isinstance(step.rule, Expanded)]
        if not expandable:
            return steps
        for step, rule in expandable:
            expand(graph, step, rule, opset)
        infer(model)


def _blocked(steps: Iterable[Step], parameters: Collection[ir.Value]) -> list[Blocked]:
    return [Blocked(step.node, _reason(step), _before(step.node, parameters)) for step in steps if step.blocked]


def _before(node: ir.Node, parameters: Collection[ir.Value]) -> frozenset[str]:
    """Returns the names of those among `parameters` that the node depends on."""
    found: set[str] = set()
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        for value in (*current.inputs, *captured_values(current)):
            if value is not None and value in parameters:
                found.add(str(value.name))
            producer = None if value is None else value.producer()
            if producer is not None and producer not in seen:
                seen.add(producer)
                waiting.append(producer)
    return frozenset(found)


def _reason(step: Step) -> str:
    if isinstance(step.rule, Refused):
        return step.rule.reason
    names = ", ".join(f"{i} ('{value.name}')" for i in sorted(step.barred) if (value := step.node.inputs[i]))
    return f"it has no gradient for its input {names}"


def _parameters(graph: ir.Graph, wrt: Iterable[str]) -> list[ir.Value]:
    known = {value.name: value for value in graph.inputs} | dict(graph.initializers)
    values = []
    for name in wrt:
        value = known.get(name)
        if value is None:
            raise InputError(f"wrt {name!r}: no input or initializer has this name; name one of the model's")
        if not may_be_float(value):
            raise InputError(f"wrt {name!r}: its type is {value.dtype}; only float values have gradients")
        values.append(value)
    return values


def _value(graph: ir.Graph, name: str) -> ir.Value:
    for node in graph:
        for output in node.outputs:
            if output.name == name:
                return output
    raise InputError(f"loss {name!r}: no node of the model computes it; name a float scalar of the graph")


def _qualified(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
