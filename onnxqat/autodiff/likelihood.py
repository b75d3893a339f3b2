"""Gradient of the negative log-likelihood of classes (ONNX specification: NegativeLogLikelihoodLoss).

With log-probabilities l [N, C, …], labels t [N, …] and weights w [C] (ones where left out), mᵢ = 1 where tᵢ is not
`ignore_index` and 0 elsewhere: lossᵢ = −mᵢ·w_tᵢ·l_tᵢ, summed, or divided by Σ mᵢ·w_tᵢ for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.rule import Call
from onnxqat.autodiff.shapes import size
from onnxqat.graph.ops import Ops


@dataclass(frozen=True)
class Likelihood:
    """Gradients that all losses over classes need.

    Attributes:
        dlog: gradient of the log-probabilities, [N, C, …].
        dweight: gradient of the weights, [C]; None if it is not wanted.
    """

    dlog: ir.Value
    dweight: ir.Value | None


def likelihood(
    op: Ops, call: Call, log: ir.Value, labels: ir.Value, weight: ir.Value | None, dy: ir.Value
) -> Likelihood:
    """Writes dl = −onehot(t)·cᵢ and dw, with cᵢ = dyᵢ·mᵢ·w_tᵢ (over Σ mⱼ·w_tⱼ for the mean)."""
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
    return Likelihood(dlog, dweight)
