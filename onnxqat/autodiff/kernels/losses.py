"""Backward kernels of Softmax, LogSoftmax and the loss that is made of it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.likelihood import likelihood
from onnxqat.autodiff.rule import Call, Formula
from onnxqat.graph.ops import Ops


def softmax_grad(op: Ops, call: Call) -> ir.Value:
    """(dy, y) of y = softmax x: dx = y·(dy − Σ dy·y)."""
    dy, y = call.required(0), call.required(1)
    weighted = op.Mul(dy, y)
    return op.Sub(weighted, op.Mul(y, op.reduce("Sum", weighted, [call.get("axis", -1)], keepdims=True)))


def log_softmax_grad(op: Ops, call: Call) -> ir.Value:
    """(dy, y) of y = log softmax x: dx = dy − eʸ·Σ dy."""
    dy, y = call.required(0), call.required(1)
    return op.Sub(dy, op.Mul(op.Exp(y), op.reduce("Sum", dy, [call.get("axis", -1)], keepdims=True)))


def softmax_cross_entropy_loss_grad(op: Ops, call: Call) -> ir.Value:
    """(dy, l, labels) with l = log softmax x along axis 1: the gradient dl of the likelihood taken back to x."""
    dy, log, labels = (call.required(i) for i in range(3))
    dlog = likelihood(op, call, log, labels, None, dy).dlog
    return op.Sub(dlog, op.Mul(op.Exp(log), op.reduce("Sum", dlog, [1], keepdims=True)))


BODIES: Mapping[str, Formula] = {
    "SoftmaxGrad_13": softmax_grad,
    "LogSoftmaxGrad_13": log_softmax_grad,
    "SoftmaxCrossEntropyLossGrad": softmax_cross_entropy_loss_grad,
}
