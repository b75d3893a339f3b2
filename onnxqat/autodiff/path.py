"""Finds the nodes that lie on a path from the values that are differentiated to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from onnxqat.autodiff.rule import Refused, Rule, Stopped
from onnxqat.autodiff.rules.table import rule_for
from onnxqat.graph.nesting import captured_values
from onnxqat.graph.ops import FLOAT_TYPES


@dataclass(frozen=True)
class Step:
    """A node on the path to the loss.

    Attributes:
        node: the node.
        rule: how it is differentiated.
        inputs: indices of inputs through which the gradient must flow.
        barred: indices of inputs that depend on differentiated values, but have no gradient.
        outputs: indices of outputs that the loss depends on.
    """

    node: ir.Node
    rule: Rule
    inputs: frozenset[int]
    barred: frozenset[int]
    outputs: frozenset[int]

    @property
    def blocked(self) -> bool:
        """Whether the gradient must pass here and cannot."""
        return bool(self.outputs) and (isinstance(self.rule, Refused) or bool(self.barred))


def may_be_float(value: ir.Value | None) -> bool:
    """Says whether a gradient can belong to `value`: its element type is float, or not known."""
    if value is None or isinstance(value.type, ir.SequenceType):
        return value is not None
    return value.dtype is None or value.dtype in FLOAT_TYPES


def trace(model: ir.Model, wrt: Iterable[ir.Value], targets: Iterable[ir.Value]) -> list[Step]:
    """Returns the nodes that depend on `wrt`, in graph order; `outputs` is empty where no target depends on them."""
    carried = {value for value in wrt if may_be_float(value)}
    rules = partial(rule_for, functions=model.functions)
    forward = [step for node in model.graph if (step := _forward_step(node, rules, carried)) is not None]
    live = {value for value in targets if may_be_float(value)}
    return [_backward_step(step, live) for step in reversed(forward)][::-1]


def _forward_step(node: ir.Node, rules: Callable[[ir.Node], Rule], carried: set[ir.Value]) -> Step | None:
    reached = frozenset(i for i, value in enumerate(node.inputs) if value in carried)
    captured = any(value in carried for value in captured_values(node))
    if not reached and not captured:
        return None
    rule = rules(node)
    none: frozenset[int] = frozenset()
    codes = (isinstance(rule, Refused) and rule.codes) or any(not may_be_float(node.inputs[i]) for i in reached)
    carriers = [value for value in node.outputs if codes or may_be_float(value)]
    if isinstance(rule, Stopped) or not carriers:
        return Step(node, rule, none, none, none)
    if isinstance(rule, Refused):
        carried.update(carriers)
        return Step(node, rule, reached, none, none)
    steering = rule.steering & reached
    covered = reached - steering if rule.inputs is None else reached & rule.inputs
    barred = reached - covered - steering
    if covered or barred:
        carried.update(carriers)
    return Step(node, rule, covered, barred, none)


def _backward_step(step: Step, live: set[ir.Value]) -> Step:
    outputs = frozenset(i for i, value in enumerate(step.node.outputs) if value in live)
    if outputs:
        live.update(value for i in step.inputs if (value := step.node.inputs[i]) is not None)
    return Step(step.node, step.rule, step.inputs, step.barred, outputs)
