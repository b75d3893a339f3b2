"""Copies of models that verification needs: without quantizers, with more outputs, with names that survive a runtime."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.graph import io, qdq
from onnxqat.graph.edit import constant_value
from onnxqat.numerics import dequantize


def without_quantizers(model: ir.Model) -> ir.Model:
    """The float model behind a Q/DQ model: every quantizer gone, stored codes back in float."""
    model = io.load(model)
    for quantizer in qdq.quantizers(model):
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
        carrier.outputs[0].name = quantizer.output.name
        graph.insert_after(quantizer.dequantize, carrier)
        replacement, quantizer.output.name = carrier.outputs[0], f"{quantizer.output.name}_quantized"
        replacement.dtype, replacement.shape = ir.DataType.FLOAT, quantizer.output.shape
    ir.convenience.replace_all_uses_with(quantizer.output, replacement, replace_graph_outputs=True)


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy of the model that also gives the float values of these names."""
    model = io.load(model)
    present = {value.name for value in model.graph.outputs}
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        if name not in present:
            value = values[name]
            value.dtype = ir.DataType.FLOAT
            model.graph.outputs.append(value)
    return model


def probes(model: ir.Model) -> dict[str, qdq.Quantizer]:
    """The quantizers of values that are computed at run time, by the name of the value they give, in order of execution."""
    return {str(q.output.name): q for q in qdq.quantizers(model) if q.quantize is not None and not q.is_weight}


def size(path: str | os.PathLike[str]) -> int:
    """Bytes of a model's file and of the files that hold its external data."""
    path = Path(path)
    proto = onnx.load(path, load_external_data=False)
    external = {
        onnx.external_data_helper.ExternalDataInfo(tensor).location
        for tensor in proto.graph.initializer
        if onnx.external_data_helper.uses_external_data(tensor)
    }
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in external)))
