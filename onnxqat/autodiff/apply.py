"""Puts gradient rules into a model: nodes replaced by formulas, or wrapped in functions that have a gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import onnx_ir as ir

from onnxqat.autodiff import ort
from onnxqat.autodiff.path import Step
from onnxqat.autodiff.rule import Call, Custom, Differentiable, Expanded, FunctionGradient, GradientFormula
from onnxqat.graph.ops import Ops, set_types

DOMAIN = "onnxqat.gradient"


def expand(graph: ir.Graph, step: Step, rule: Expanded, opset: int) -> None:
    """Replaces the node by its formula's nodes, whose names begin with the node's own."""
    node = step.node
    op = Ops(opset)
    call = Call(node.op_type, tuple(node.inputs), tuple(node.outputs), node.attributes, opset, step.inputs)
    results = rule.formula(op, call)
    values = [results] if isinstance(results, ir.Value) else list(results)
    made = {value for new in op.nodes for value in new.outputs}
    values = [value if value in made else op.Identity(value) for value in values]
    for number, new in enumerate(op.nodes):
        new.name = f"{node.name}/{new.op_type}_{number}"
    ir.convenience.replace_nodes_and_values(graph, node, [node], op.nodes, node.outputs[: len(values)], values)


def complete_outputs(step: Step, opset: int) -> None:
    """Gives the node the optional outputs that its gradient needs."""
    node, count = step.node, step.rule.outputs if isinstance(step.rule, Differentiable) else 0
    if count > len(node.outputs):
        node.resize_outputs(count)
    for index, value in enumerate(node.outputs[:count]):
        value.name = value.name or f"{node.name}/output_{index}"
    set_types(node, opset)


def wrap(model: ir.Model, step: Step, rule: Custom, opset: int) -> list[tuple[ir.Node, int]]:
    """Replaces the node by a call of a function made of it alone, whose gradient is registered.

    Returns the inputs of the call through which no gradient must flow.
    """
    node = step.node
    name = f"{node.op_type}_{_signature(step, opset)}"
    if (DOMAIN, name, "") not in model.functions:
        forward = _forward_function(node, name, opset)
        model.functions[forward.identifier()] = forward
        gradient, arguments, results = _gradient_function(step, rule.gradient, f"{name}_gradient", opset)
        model.functions[gradient.identifier()] = gradient
        ort.register_gradient(DOMAIN, name, (DOMAIN, gradient.name), arguments, results)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
    present = [index for index, value in enumerate(node.inputs) if value is not None]
    call = ir.Node(
        DOMAIN,
        name,
        [node.inputs[index] for index in present],
        outputs=[_like(value, value.name or f"{node.name}/y{i}") for i, value in enumerate(node.outputs)],
        name=node.name,
    )
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [call], node.outputs, call.outputs)
    return [(call, present.index(index)) for index in step.cut]


def attach(model: ir.Model, step: Step, rule: FunctionGradient) -> None:
    """Adds the gradient of the function that the node calls to the model.

    The builder crashes on a gradient function whose last outputs nobody asks for: such a node calls a copy of the function
    whose gradient lacks them.
    """
    node, function = step.node, rule.gradient
    results = [result for result in rule.results if int(result[3:-1]) <= max(step.inputs)]
    if len(results) < len(rule.results):
        called = model.functions[node.op_identifier()].clone()
        called.name = f"{called.name}_first{len(results)}"
        model.functions[called.identifier()] = called
        node.op_type = called.name
        function = function.clone()
        function.name = f"{called.name}_gradient"
        del function.outputs[len(results) :]
    model.functions.setdefault(function.identifier(), function)
    for domain, version in function.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, version)
    model.graph.opset_imports.setdefault(function.domain, 1)
    ort.register_gradient(node.domain, node.op_type, (function.domain, function.name), rule.arguments, results)


def _like(value: ir.Value, name: str | None) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=value.shape.copy() if value.shape is not None else None)


def _formal(value: ir.Value | None, name: str) -> ir.Value | None:
    """Returns a function's own parameter that stands for `value`, with its type, shape and small constant."""
    if value is None:
        return None
    formal = _like(value, name)
    formal.const_value = ir.convenience.get_const_tensor(value)
    return formal


def _signature(step: Step, opset: int) -> str:
    """Returns a digest of all that a gradient function may depend on."""
    node = step.node
    inputs = [
        None if value is None else (str(value.type), str(value.shape), _constant_text(value)) for value in node.inputs
    ]
    outputs = [(str(value.type), str(value.shape)) for value in node.outputs]
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    parts = (node.domain, node.op_type, opset, inputs, outputs, attributes, sorted(step.inputs), sorted(step.outputs))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _constant_text(value: ir.Value) -> str | None:
    small = Call("", (value,), (), {}, 0).constant(0)
    return None if small is None else repr(small)


def _forward_function(node: ir.Node, name: str, opset: int) -> ir.Function:
    formals = [_formal(value, f"x{i}") for i, value in enumerate(node.inputs)]
    body = ir.Node(
        node.domain,
        node.op_type,
        formals,
        attributes=list(node.attributes.values()),
        outputs=[_like(value, f"y{i}") for i, value in enumerate(node.outputs)],
        name=name,
    )
    return _function(name, [value for value in formals if value is not None], body.outputs, [body], opset)


def _function(
    name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node], opset: int
) -> ir.Function:
    imports = {"": opset} | {node.domain: 1 for node in nodes if node.domain}
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports=imports, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=())


def _gradient_function(
    step: Step, formula: GradientFormula, name: str, opset: int
) -> tuple[ir.Function, list[str], list[str]]:
    """Returns the gradient function, what it is called with and what it returns, in the builder's notation."""
    node = step.node
    op = Ops(opset)
    inputs = tuple(_formal(value, f"x{i}") for i, value in enumerate(node.inputs))
    outputs = tuple(_like(value, f"y{i}") for i, value in enumerate(node.outputs))
    upstream = tuple(_like(v, f"dy{i}") if i in step.outputs else None for i, v in enumerate(node.outputs))
    call = Call(node.op_type, inputs, outputs, node.attributes, opset, step.inputs)
    written = formula(op, call, *upstream)
    gradients = [written] if isinstance(written, ir.Value) else list(written)
    made = {value for new in op.nodes for value in new.outputs}
    present = [i for i, value in enumerate(inputs) if value is not None]
    results = []
    for index in present[: 1 + max(map(present.index, step.inputs))]:
        # The builder takes result i for the gradient of input i, wanted or not: what is not wanted gets a stand-in.
        value = gradients[index] if index in step.inputs else inputs[index]
        assert value is not None, f"{node.op_type}: its rule promises a gradient for input {index} and gives none"
        results.append(value if value in made and value not in results else op.Identity(value))
    names = [f"GI({position})" for position in range(len(results))]
    formals = [(f"GO({i})", value) for i, value in enumerate(upstream)]
    formals += [(f"I({position})", inputs[index]) for position, index in enumerate(present)]
    formals += [(f"O({i})", value) for i, value in enumerate(outputs)]
    used = [(notation, value) for notation, value in formals if value is not None and value.uses()]
    function = _function(name, [value for _, value in used], results, op.nodes, opset)
    return function, [notation for notation, _ in used], names
