"""The float model behind a quantized one."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.graph import io, qdq
from onnxqat.graph.edit import constant_value, fresh_value_name
from onnxqat.numerics import dequantize


def without_quantizers(model: ir.Model, chosen: Callable[[qdq.Quantizer], bool] = lambda _: True) -> ir.Model:
    """A copy without its quantizers, or without chosen ones, stored codes back in float; outputs keep their names."""
    model = io.load(model)
    # last ones first: one that narrows another reads that one's output
    for quantizer in reversed([one for one in qdq.quantizers(model) if chosen(one)]):
        _take_out(model.graph, quantizer)
    passes.RemoveUnusedNodesPass()(model)
    return model


def _take_out(graph: ir.Graph, quantizer: qdq.Quantizer) -> None:
    replacement = quantizer.source
    if quantizer.quantize is None:
        codes = qdq.constant(quantizer.source)
        if codes is None:
            return
        floats = dequantize(codes, quantizer.scales, quantizer.zero_points, quantizer.axis)
        replacement = constant_value(graph, f"{quantizer.source.name}_float", floats)
    if quantizer.output.is_graph_output():
        # the output keeps its name, whatever computes it
        carrier = ir.node("Identity", [replacement])
        name = str(quantizer.output.name)
        carrier.outputs[0].name, quantizer.output.name = name, fresh_value_name(graph, f"{name}_quantized")
        graph.insert_after(quantizer.dequantize, carrier)
        replacement = carrier.outputs[0]
        replacement.dtype, replacement.shape = ir.DataType.FLOAT, quantizer.output.shape
    ir.convenience.replace_all_uses_with(quantizer.output, replacement, replace_graph_outputs=True)
