"""Parts of a graph as graphs of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes


def cut(model: ir.Model, given: Mapping[str, ir.DataType], wanted: Sequence[str]) -> ir.Model:
    """The part of a graph that computes the values `wanted` where those named in `given` come as inputs."""
    part = model.clone()
    graph = part.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs[:] = [values[name] for name in wanted]
    for name, dtype in given.items():
        computed = values[name]
        fed = ir.Value(name=name, type=ir.TensorType(dtype), shape=computed.shape)
        ir.convenience.replace_all_uses_with(computed, fed)
        computed.name = f"{name}/computed"
        graph.inputs.append(fed)
    passes.RemoveUnusedNodesPass()(part)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
    passes.RemoveUnusedOpsetsPass()(part)
    return part
