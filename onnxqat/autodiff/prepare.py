"""Prepares a model for differentiation: names, types, and none of the forms that mislead autodiff."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.autodiff.branches import resolve_branches
from onnxqat.autodiff.functions import gradient_of
from onnxqat.graph.identities import eliminate_identities
from onnxqat.graph.naming import name_of
from onnxqat.graph.pads import make_pads_explicit
from onnxqat.graph.types import infer


def prepare(model: ir.Model) -> ir.Model:
    """Returns a copy of `model` in which every node has a name and, where inference reaches, every value a type.

    Functions are inlined except those that carry a gradient. Identity nodes go: an exporter puts them between a
    shared initializer and its users, where the gradient builder would miss that both are one. Automatic padding is
    written out: ONNX Runtime's gradients ignore it. Branches that are decided already are taken.
    """
    copy = supported(model)
    eliminate_identities(copy)
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


def _name_nodes(graph: ir.Graph) -> None:
    """Names each nameless node after its first output, so that a message can point to it."""
    for node in graph:
        node.name = name_of(node)
