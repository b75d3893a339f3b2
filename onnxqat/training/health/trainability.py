"""Says, operator by operator, which parts of a model can be trained, and which nodes prevent it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.differentiate import Blocked, blocking_nodes
from onnxqat.autodiff.path import may_be_float
from onnxqat.autodiff.prepare import supported
from onnxqat.autodiff.rule import Expanded, Refused, Stopped
from onnxqat.autodiff.rules.table import rule_for
from onnxqat.errors import InputError
from onnxqat.graph.qdq import is_quantized, quantizers
from onnxqat.graph.types import infer
from onnxqat.runtime.conversion import modern
from onnxqat.training.quantizers.calls import call_quantizers
from onnxqat.training.quantizers.restore_float import restore_float
from onnxqat.training.training_graph.parameters import trainable

_PART_OF_A_QUANTIZER = (True, "part of a quantizer")


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a model: how often it occurs, and whether gradients pass it, how or why not."""

    op_type: str
    domain: str
    count: int
    differentiable: bool
    reason: str


def trainability(model: ir.Model) -> list[OperatorRow]:
    """Returns one row per operator and outcome, in order of first appearance. The model is left as it is."""
    copy = supported(modern(model))
    infer(copy)
    trained = {node for quantizer in quantizers(copy) for node in quantizer.nodes}
    rows = Counter(
        (node.op_type, node.domain, *(_PART_OF_A_QUANTIZER if node in trained else _outlook(node, copy.functions)))
        for node in copy.graph
    )
    return [OperatorRow(op, domain, count, yes, reason) for (op, domain, yes, reason), count in rows.items()]


def obstacles(model: ir.Model) -> list[Blocked]:
    """Returns the nodes without gradient between what training changes, unless told otherwise, and the outputs."""
    forward = modern(model).clone()
    if is_quantized(forward):
        restore_float(forward)
        call_quantizers(forward)
    try:
        names = list(trainable(forward.graph))
    except InputError:  # there is nothing to train
        return []
    return blocking_nodes(forward, names)


def _outlook(node: ir.Node, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> tuple[bool, str]:
    rule = rule_for(node, functions)
    if isinstance(rule, Stopped):
        return False, rule.reason
    if not any(may_be_float(output) for output in node.outputs) and not (isinstance(rule, Refused) and rule.codes):
        return False, "its outputs are not floats"
    if isinstance(rule, Refused):
        return False, rule.reason
    return True, "rewritten as differentiable operators" if isinstance(rule, Expanded) else "has a gradient"
