"""Copies of models that verification needs, and what it reads from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxqat.graph import io, qdq


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
