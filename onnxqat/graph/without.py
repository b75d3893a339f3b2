"""The float model behind a quantized one."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.graph import io, qdq
from onnxqat.graph.edit import constant_value, replace_value
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
    replace_value(graph, quantizer.output, replacement)
