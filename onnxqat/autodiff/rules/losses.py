"""Gradients of losses over classes (ONNX specification: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss).

With log-probabilities l [N, C, …], labels t [N, …] and weights w [C] (ones where left out), mᵢ = 1 where tᵢ is not
`ignore_index` and 0 elsewhere: lossᵢ = −mᵢ·w_tᵢ·l_tᵢ, summed, or divided by Σ mᵢ·w_tᵢ for the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Rule, RuleOrChoice, Trusted
from onnxqat.autodiff.shapes import size
from onnxqat.graph.ops import Ops


@dataclass(frozen=True)
class _Likelihood:
    """Gradients that both losses need.

    Attributes:
        dlog: gradient of the log-probabilities, [N, C, …].
        dweight: gradient of the weights, [C]; None if it is not wanted.
    """

    dlog: ir.Value
    dweight: ir.Value | None


def negative_log_likelihood_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Writes dl = −onehot(t)·cᵢ and dw, with cᵢ = dyᵢ·mᵢ·w_tᵢ (over Σ mⱼ·w_tⱼ for the mean)."""
    found = _likelihood(op, call, call.inputs[0], dy)
    return [found.dlog, None, found.dweight]


def softmax_cross_entropy_rule(node: ir.Node) -> Rule:
    """ONNX Runtime's gradient where there are no weights and the log-probabilities are not used."""
    second = node.outputs[1] if len(node.outputs) > 1 else None
    used = second is not None and (bool(second.uses()) or second.is_graph_output())
    weighted = len(node.inputs) > 2 and node.inputs[2] is not None
    return Custom(softmax_cross_entropy_gradient, outputs=2) if used or weighted else Trusted(outputs=2)


def softmax_cross_entropy_gradient(
    op: Ops, call: Call, dy: ir.Value | None, dlog: ir.Value | None
) -> list[ir.Value | None]:
    """With p = exp l and g the gradient of l = log softmax(x), from the loss and from its use: dx = g − p·Σ_c g_c."""
    log = call.outputs[1]
    total, dweight = dlog, None
    if dy is not None:
        found = _likelihood(op, call, log, dy)
        dweight = found.dweight
        total = found.dlog if total is None else op.Add(total, found.dlog)
    assert total is not None
    dx = op.Sub(total, op.Mul(op.Exp(log), op.reduce("Sum", total, [1], keepdims=True)))
    if dweight is None and 2 in call.wanted:
        weight = call.inputs[2]
        dweight = op.Mul(weight, op.like(0.0, log))
    return [dx, None, dweight]


def _likelihood(op: Ops, call: Call, log: ir.Value | None, dy: ir.Value) -> _Likelihood:
    labels, weight = call.inputs[1], call.input(2)
    assert log is not None
    assert labels is not None
    ignored, mean = call.get("ignore_index"), call.get("reduction", "mean") == "mean"
    labels, counted = op.Cast(labels, to=ir.DataType.INT64), None
    if ignored is not None:
        counted = op.Not(op.Equal(labels, op.like(ignored, labels)))
        labels = op.Where(counted, labels, op.like(0, labels))
        counted = op.Cast(counted, to=log.dtype)
    depth, values = size(op, log, 1), op.Constant(value=ir.tensor([0, 1], dtype=log.dtype))
    chosen = op.OneHot(labels, depth, values, axis=1)
    share = op.Expand(dy, op.Shape(labels))
    share = share if counted is None else op.Mul(share, counted)
    weights = op.like(1.0, log) if weight is None else op.Gather(weight, labels)
    total = None
    if mean:
        weighed = op.Expand(weights, op.Shape(labels)) if weight is None else weights
        weighed = weighed if counted is None else op.Mul(weighed, counted)
        total = op.reduce("Sum", weighed, None, keepdims=False)
        share = op.Div(share, total)
    coefficient = share if weight is None else op.Mul(share, weights)
    dlog = op.Neg(op.Mul(chosen, op.Unsqueeze(coefficient, op.ints([1]))))
    dweight = None
    if 2 in call.wanted:
        each = op.Neg(op.reduce("Sum", op.Mul(chosen, log), [1], keepdims=False))
        if total is not None:  # the loss again: ONNX Runtime's own sum is too coarse for this difference
            loss = op.Div(op.reduce("Sum", op.Mul(each, weighed), None, keepdims=False), total)
            each = op.Sub(each, loss)
        each = op.Mul(each, share)
        rows = op.OneHot(op.Reshape(labels, op.ints([-1])), depth, values, axis=-1)
        dweight = op.Squeeze(op.MatMul(op.Reshape(each, op.ints([1, -1])), rows), op.ints([0]))
    return _Likelihood(dlog, dweight)


RULES: Mapping[str, RuleOrChoice] = {
    "NegativeLogLikelihoodLoss": Custom(negative_log_likelihood_gradient, inputs=frozenset({0, 2})),
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy_rule,
}
