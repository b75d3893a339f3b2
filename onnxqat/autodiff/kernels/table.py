"""The table of backward kernels, and the functions that a model gets for its calls of them.

A gradient formula that an engine computes faster in one node is written as a call: `onnxqat.kernel::ConvGrad(dY, X, W)`, with the
name, inputs and attributes that ONNX Runtime's training operator has. `define` gives each call a model-local function of standard
operators, made for its attributes and shapes, and told apart by `overload`. The model is then plain ONNX. `lowering.py` puts in
an engine's own operator, or the function's body.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.kernels import convolution, elementwise, indexing, losses, matrices, normalizations
from onnxqat.autodiff.rule import Call, Formula
from onnxqat.graph.ops import KERNELS, Ops

FAMILIES = (convolution, elementwise, indexing, losses, matrices, normalizations)
TABLE: Mapping[str, Formula] = {name: body for family in FAMILIES for name, body in family.BODIES.items()}


def is_kernel(node: ir.Node) -> bool:
    """Whether the node is a call of one of these functions."""
    return node.domain == KERNELS


def define(model: ir.Model) -> None:
    """Adds, in place, the function of every kernel that the model or one of its functions calls."""
    waiting = list(model.graph.all_nodes())
    for function in model.functions.values():
        waiting.extend(function.all_nodes())
    while waiting:
        node = waiting.pop()
        if not is_kernel(node) or node.overload:
            continue
        node.overload = _signature(node)
        if node.op_identifier() not in model.functions:
            function = _function(node, model.opset_imports[""])
            model.functions[function.identifier()] = function
            waiting.extend(function.all_nodes())
        model.graph.opset_imports[KERNELS] = 1


def _signature(node: ir.Node) -> str:
    """Returns a digest of all that the function's body may depend on."""
    inputs = [None if value is None else (str(value.type), str(value.shape)) for value in node.inputs]
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    return hashlib.sha256(repr((inputs, attributes)).encode()).hexdigest()[:8]


def _function(node: ir.Node, opset: int) -> ir.Function:
    op = Ops(opset)
    formals = tuple(None if v is None else _formal(v, f"x{i}") for i, v in enumerate(node.inputs))
    results = TABLE[node.op_type](op, Call(node.op_type, formals, tuple(node.outputs), node.attributes, opset))
    outputs = [results] if isinstance(results, ir.Value) else list(results)
    inputs = [value for value in formals if value is not None]
    imports = {"": opset, KERNELS: 1}
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports=imports, name=node.op_type)
    parameters = [ir.Attr(name, attribute.type, None) for name, attribute in node.attributes.items()]
    return ir.Function(KERNELS, node.op_type, node.overload, graph=graph, attributes=parameters)


def _formal(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=None if value.shape is None else value.shape.copy())
