"""The table that joins each operator to its gradient rule: the `RULES` of all families."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.functions import gradient_of
from onnxqat.autodiff.rule import Refused, Rule, RuleOrChoice
from onnxqat.autodiff.rules import (
    activations,
    arithmetic,
    convolution,
    determinant,
    einsum,
    elementwise,
    grid,
    indexing,
    layout,
    losses,
    normalizations,
    pooling,
    recurrent,
    reductions,
    refusals,
    resize,
    spectral,
)

FAMILIES = (
    activations,
    arithmetic,
    convolution,
    determinant,
    einsum,
    elementwise,
    grid,
    indexing,
    layout,
    losses,
    normalizations,
    pooling,
    recurrent,
    reductions,
    refusals,
    resize,
    spectral,
)
TABLE: dict[tuple[str, str], RuleOrChoice] = {
    ("", op_type): rule for family in FAMILIES for op_type, rule in family.RULES.items()
}


def rule_for(node: ir.Node, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> Rule:
    """Returns how `node`, of a model with these functions, is differentiated, or why it is not."""
    function = functions.get(node.op_identifier())
    gradient = None if function is None else gradient_of(function)
    if gradient is not None:
        return gradient
    rule = TABLE.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    if rule is None:
        return Refused("no gradient is known for this operator")
    return rule(node) if callable(rule) else rule
