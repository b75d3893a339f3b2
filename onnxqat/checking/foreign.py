"""Rule about operators that are not ONNX's own: those of ONNX Runtime alone, and custom ones."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.checking.findings import Finding
from onnxqat.graph.naming import label
from onnxqat.graph.opsets import is_foreign
from onnxqat.targets import Target

_REMEDY = "export the model again without ONNX Runtime's optimizations"


def operators(model: ir.Model, target: Target) -> Iterator[Finding]:
    """Each node whose operator is none of ONNX's own, where the target does not have it."""
    for node in filter(is_foreign, model.graph.all_nodes()):
        alone = f"{node.op_type} is an operator of ONNX Runtime alone"
        if not _of_onnxruntime(node):
            fact = f"{node.op_type} of domain {node.domain!r} is a custom operator, which {target.title} does not have"
            yield Finding("refused", label(node), fact, "export the model without it")
        elif not target.limits.contrib:
            yield Finding("refused", label(node), f"{alone}, which {target.title} does not have", _REMEDY)
        elif target.placement.whole:
            yield Finding("split", label(node), f"{alone}, which {target.title} leaves to the CPU", _REMEDY)


def _of_onnxruntime(node: ir.Node) -> bool:
    """Whether ONNX Runtime's optimizations write the operator; one of them has no domain of its own."""
    return node.domain.startswith(("com.microsoft", "com.ms.internal")) or (node.domain, node.op_type) == (
        "",
        "SimplifiedLayerNormalization",
    )
