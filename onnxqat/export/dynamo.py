"""PyTorch's newer exporter, `torch.onnx.export(dynamo=True)`, with the names that the TorchScript one gives."""

from __future__ import annotations

import ast
import contextlib
import io as memory
import logging

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.export.finish import tidy
from onnxqat.export.forward import Forward
from onnxqat.export.names import free, roles
from onnxqat.export.quiet import no_printing, quiet, reason
from onnxqat.export.torchscript import no_fused_attention
from onnxqat.graph.opsets import lowered

log = logging.getLogger(__name__)

#: Oldest opset that this exporter writes (torch 2.13).
OLDEST_OPSET = 18
#: Where the exporter notes the modules around a node, as a Python list: `['', 'layer', 'layer.attention', 'linear']`.
_SCOPES = "pkg.torch.onnx.name_scopes"


def write(forward: Forward, opset: int) -> ir.Model:
    """Runs the newer exporter.

    The model's opset is 18 where it was asked to be older and an operator has no older form; that is logged.

    Raises:
        UnsupportedModelError: the exporter cannot write the module.
    """
    try:
        model = tidy(_exported(forward, max(opset, OLDEST_OPSET)))
    except Exception as error:
        raise UnsupportedModelError(
            f"{forward.kind}: PyTorch cannot export it ({reason(error)}); write that part with operations that ONNX has"
        ) from error
    _fold(model)
    _name(model.graph, {name for name, _ in forward.module.named_parameters()})
    if opset >= OLDEST_OPSET:
        return model
    try:
        with quiet():
            return lowered(model, opset)
    except InputError:
        log.warning(
            "%s: written by PyTorch's newer exporter, which has no opset below %d for it", forward.kind, OLDEST_OPSET
        )
        return model


def _exported(forward: Forward, opset: int) -> onnx.ModelProto:
    """Runs the exporter, without its optimizer, which would make one of parameters that are equal."""
    # Of a batch of one, torch.export would make a constant.
    inputs = tuple(torch.cat([value, value]) if len(value) == 1 else value for value in forward.inputs)
    silence = contextlib.redirect_stderr(memory.StringIO())
    with quiet(), no_printing(), silence, no_fused_attention():
        program = torch.onnx.export(
            forward.module,
            inputs,
            input_names=forward.names,
            output_names=list(forward.outputs),
            dynamic_shapes=({0: "batch"},) * len(inputs),
            opset_version=opset,
            optimize=False,
            verbose=False,
            dynamo=True,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def _fold(model: ir.Model) -> None:
    """Computes what depends on no input: weights that a parametrization makes, transposed weights, shapes."""
    optimizer.fold_constants(model, onnx_shape_inference=True, input_size_limit=2**31, output_size_limit=2**31)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveUnusedNodesPass()(model)


def _name(graph: ir.Graph, parameters: set[str]) -> None:
    """Names nodes, their values, and weights that are no parameter, by the path of their module; drops the exporter's notes."""
    nodes: set[str] = set()
    values = {str(value.name) for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]}
    for node in graph:
        path = _path(node)
        node.name = free("/".join(["", *path, node.op_type]), nodes)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = free(f"{node.name}_output_{index}", values)
        for index, role in roles(node).items():
            weight = node.inputs[index] if index < len(node.inputs) else None
            if weight is not None and weight.is_initializer() and weight.name not in parameters:
                weight.name = free(".".join([*path, role]), values)
                parameters.add(weight.name)
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None


def _path(node: ir.Node) -> list[str]:
    """Names of the modules around the node, each within the one before it."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]
    path, outer = [], ""
    for scope in scopes:
        # Sizes that several modules use belong to none; the exporter gives them a name of its own, which begins so.
        if scope.startswith(outer) and scope != outer and not scope.startswith("_"):
            path.append(scope.removeprefix(outer).removeprefix("."))
            outer = scope
    return path
