"""Prepares a model for differentiation: names, types, and none of the forms that mislead autodiff."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff.branches import resolve_branches
from onnxqat.autodiff.functions import gradient_of
from onnxqat.graph.naming import name_of
from onnxqat.graph.pads import make_pads_explicit
from onnxqat.graph.types import infer
from onnxqat.graph.upgrade import upgrade_nodes

_OPSET = 16


def prepare(model: ir.Model) -> ir.Model:
    """Returns a copy of `model` in which every node has a name and, where inference reaches, every value a type.

    Functions are inlined except those that carry a gradient. Automatic padding is written out. Branches that are decided already
    are taken. Operator sets before 16, which cannot add up what is scattered, become 16.
    """
    copy = supported(model)
    if copy.opset_imports[""] < _OPSET:
        _upgrade(copy)
    passes.TopologicalSortPass()(copy)
    _name_nodes(copy.graph)
    passes.NameFixPass()(copy)
    infer(copy)
    make_pads_explicit(copy)
    return copy


def supported(model: ir.Model) -> ir.Model:
    """Returns a copy without functions that have no gradient of their own, and without decided branches."""
    copy = model.clone()
    if copy.functions:
        passes.InlinePass(lambda function: gradient_of(function) is None)(copy)
    resolve_branches(copy)
    return copy


def _upgrade(model: ir.Model) -> None:
    upgrade_nodes(model, model.opset_imports[""], _OPSET)
    model.opset_imports[""] = _OPSET
    for function in model.functions.values():
        function.opset_imports[""] = _OPSET


def _name_nodes(graph: ir.Graph) -> None:
    """Names each nameless node after its first output, so that a message can point to it."""
    for node in graph:
        node.name = name_of(node)
