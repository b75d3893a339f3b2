"""Biases in training lie on the grid that their integer kernel adds them on (see `graph.biases`), as in the deployed model.

`RoundBias(b, sx, sw)` is round(b / (sx · sw)) · (sx · sw). Its gradient passes straight through to b (Bengio et al. 2013); the
scales get none from here: the grid is not theirs to choose.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.autodiff.functions import give_gradient
from onnxqat.autodiff.rule import Custom
from onnxqat.graph.biases import Bias
from onnxqat.graph.edit import fresh_name, fresh_value_name
from onnxqat.graph.io import opset
from onnxqat.graph.ops import Ops

DOMAIN, NAME = "onnxqat.bias", "RoundBias"


def is_call(node: ir.Node) -> bool:
    """Whether the node rounds a bias."""
    return node.domain == DOMAIN and node.op_type == NAME


def call_rounding(model: ir.Model, biases: list[Bias]) -> None:
    """Lets layers read their biases through `RoundBias`, in place."""
    graph = model.graph
    if not biases:
        return
    function = _function(opset(model))
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1
    for bias in biases:
        name = fresh_value_name(graph, f"{bias.value.name}_rounded")
        inputs = [bias.value, bias.data.scale, bias.weight.scale]
        call = ir.Node(DOMAIN, NAME, inputs, name=fresh_name(graph, name))
        output = call.outputs[0]
        output.name, output.type, output.shape = name, bias.value.type, bias.value.shape
        graph.insert_before(bias.adder, call)
        bias.adder.replace_input_with(bias.index, output)


def _function(version: int) -> ir.Function:
    bias, data_scale, weight_scale = (ir.val(name) for name in ("b", "sx", "sw"))
    op = Ops(version)
    step = op.Mul(data_scale, weight_scale)
    rounded = op.Mul(op.Round(op.Div(bias, step)), step)
    inputs = [bias, data_scale, weight_scale]
    graph = ir.Graph(inputs, [rounded], nodes=op.nodes, opset_imports={"": version}, name=NAME)
    function = ir.Function(DOMAIN, NAME, graph=graph, attributes=())
    give_gradient(function, Custom(lambda op, call, db: db, inputs=frozenset({0}), steering=frozenset({1, 2})))
    return function
