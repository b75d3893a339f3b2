"""Fits a gradient graph to an engine: calls of backward kernels become its own operators, or standard ones."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff.kernels.table import TABLE, is_kernel
from onnxqat.graph.ops import KERNELS

#: Domain under which ONNX Runtime has its own operators.
OWN = "com.microsoft"
#: Kernels of the builds of ONNX Runtime that can train, and of all others. (`MaxPoolGrad` of theirs takes one size of images.)
OF_TRAINING, OF_RUNTIME = frozenset(TABLE) - {"MaxPoolGrad"}, frozenset({"FusedMatMul"})


def lower(model: ir.Model, kernels: Collection[str]) -> None:
    """Inlines all functions, in place, but the backward kernels that the engine has: these become nodes of its own.

    ONNX Runtime has its training kernels for float32 alone.

    Args:
        model: a model that `differentiate` returned.
        kernels: names of the kernels that the engine has; none for standard operators only.
    """
    _name_outputs(model)
    passes.InlinePass(lambda function: function.domain != KERNELS or function.name not in kernels)(model)
    passes.RemoveUnusedNodesPass()(model)
    for node in model.graph.all_nodes():
        if is_kernel(node) and node.op_type in kernels and _is_single(node):
            node.domain, node.overload = OWN, ""
            model.graph.opset_imports[OWN] = 1
            if node.op_type == "ConvGrad":
                _leave_out_unused(node)
    _name_outputs(model)
    passes.InlinePass()(model)
    model.functions.clear()
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _leave_out_unused(node: ir.Node) -> None:
    """Takes the names from outputs that nobody reads: the kernel then does not compute them."""
    for output in node.outputs:
        if not output.uses() and not output.is_graph_output():
            output.name = ""


def _is_single(node: ir.Node) -> bool:
    types = {value.dtype for value in node.inputs if value is not None}
    return not types & {ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def _name_outputs(model: ir.Model) -> None:
    """Names the outputs of calls that nobody asked for, or the inliner would join them all."""
    for number, node in enumerate(model.graph):
        for index, output in enumerate(node.outputs):
            if not output.name and node.op_identifier() in model.functions:
                output.name = f"unused_{number}_{index}"
