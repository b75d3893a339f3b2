"""Gradients of losses over classes (ONNX specification: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.likelihood import likelihood
from onnxqat.autodiff.rule import Call, Custom, RuleOrChoice
from onnxqat.graph.ops import Ops


def negative_log_likelihood_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """NegativeLogLikelihoodLoss: see `autodiff.likelihood`."""
    found = likelihood(op, call, call.required(0), call.required(1), call.input(2), dy)
    return [found.dlog, None, found.dweight]


def softmax_cross_entropy_gradient(
    op: Ops, call: Call, dy: ir.Value | None, dlog: ir.Value | None
) -> list[ir.Value | None]:
    """With p = exp l and g the gradient of l = log softmax(x), from the loss and from its use: dx = g − p·Σ_c g_c."""
    log, weight = call.outputs[1], call.input(2)
    if dlog is None and weight is None:
        names = [name for name in ("reduction", "ignore_index") if name in call.attributes]
        attributes = {name: call.get(name) for name in names}
        return [op.kernel("SoftmaxCrossEntropyLossGrad", dy, log, call.required(1), **attributes)[0]]
    total, dweight = dlog, None
    if dy is not None:
        found = likelihood(op, call, log, call.required(1), weight, dy)
        dweight = found.dweight
        total = found.dlog if total is None else op.Add(total, found.dlog)
    assert total is not None
    dx = op.Sub(total, op.Mul(op.Exp(log), op.reduce("Sum", total, [1], keepdims=True)))
    if dweight is None and 2 in call.wanted:
        dweight = op.Mul(weight, op.like(0.0, log))
    return [dx, None, dweight]


RULES: Mapping[str, RuleOrChoice] = {
    "NegativeLogLikelihoodLoss": Custom(negative_log_likelihood_gradient, inputs=frozenset({0, 2})),
    "SoftmaxCrossEntropyLoss": Custom(softmax_cross_entropy_gradient, inputs=frozenset({0, 2}), outputs=2),
}
