"""Training and evaluation graphs that take all parameters in one array, and give all gradients in one."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.io import opset
from onnxqat.graph.ops import Ops
from onnxqat.training.training_graph.losses import LOSS
from onnxqat.training.training_graph.parameters import Layout

#: Names that no model of a user's has.
PARAMETERS, GRADIENTS = "onnxqat.parameters", "onnxqat.gradients"


def evaluation(model: ir.Model, layout: Layout) -> ir.Model:
    """A copy of a graph that takes its parameters from one flat input."""
    copy = model.clone()
    graph, op = copy.graph, Ops(opset(model))
    given = {str(value.name): value for value in graph.inputs}
    whole = vector(PARAMETERS, layout.size)
    for parameter in layout.parameters:
        value = given.pop(parameter.name)
        part = op.Slice(whole, op.ints([parameter.offset]), op.ints([parameter.offset + parameter.size]))
        ir.convenience.replace_all_uses_with(value, op.Reshape(part, op.ints(parameter.shape)))
    graph.inputs[:] = [*given.values(), whole]
    graph.insert_before(graph[0], op.named(PARAMETERS))
    return copy


def training(model: ir.Model, layout: Layout) -> ir.Model:
    """The same of a training graph, which gives its gradients in one flat output; gaps between them hold 0."""
    copy = evaluation(model, layout)
    graph, op = copy.graph, Ops(opset(model))
    results = {str(value.name): value for value in graph.outputs}
    parts, reached = [], 0
    for parameter in layout.parameters:
        parts += _gap(op, parameter.offset - reached)
        parts.append(op.Reshape(results[f"{parameter.name}_grad"], op.ints([-1])))
        reached = parameter.offset + parameter.size
    whole = op.Concat(*parts, *_gap(op, layout.size - reached), axis=0)
    whole.name, whole.type, whole.shape = GRADIENTS, ir.TensorType(ir.DataType.FLOAT), ir.Shape([layout.size])
    graph.extend(op.named(GRADIENTS))
    graph.outputs[:] = [results[LOSS], whole]
    return copy


def vector(name: str, size: int) -> ir.Value:
    """An input [size] of float32."""
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([size]))


def _gap(op: Ops, size: int) -> list[ir.Value]:
    return [op.Constant(value=ir.tensor([0.0] * size, dtype=ir.DataType.FLOAT))] if size else []
