"""Gradients of activation functions, each written from its definition in the ONNX operator specification.

Below, x is the input, y the output, dy the output's gradient, s the logistic function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, RuleOrChoice
from onnxqat.graph.ops import Ops

_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

#: Beyond it tanh u is ±1 in every type, and the derivative 0 or 1; x³ would overflow farther out.
_GELU_END = 20.0


def _zero_outside(op: Ops, dy: ir.Value, inside: ir.Value) -> ir.Value:
    return op.masked(dy, inside)


def relu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Relu, y = max(x, 0): dx = dy where y > 0. ONNX Runtime's own kernel branches per element: twelve times slower."""
    return _zero_outside(op, dy, op.Greater(call.outputs[0], 0.0))


def leaky_relu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """LeakyRelu, y = x for x ≥ 0, else αx: dx = α·dy, and (1 − α)·dy more where x > 0."""
    alpha = call.get("alpha", 0.01)
    more = _zero_outside(op, op.Mul(dy, 1.0 - alpha), op.Greater(call.required(0), 0.0))
    return op.Add(op.Mul(dy, alpha), more)


def sigmoid_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Sigmoid: dx = dy·y·(1 − y)."""
    y = call.outputs[0]
    return op.Mul(op.Mul(dy, y), op.Sub(1.0, y))


def tanh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Tanh: dx = dy·(1 − y²)."""
    y = call.outputs[0]
    return op.Mul(dy, op.Sub(1.0, op.Mul(y, y)))


def softmax_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Softmax: see `kernels.losses`."""
    return op.kernel("SoftmaxGrad_13", dy, call.outputs[0], axis=call.get("axis", -1))[0]


def log_softmax_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """LogSoftmax: see `kernels.losses`."""
    return op.kernel("LogSoftmaxGrad_13", dy, call.outputs[0], axis=call.get("axis", -1))[0]


def hard_swish(op: Ops, call: Call) -> ir.Value:
    """HardSwish, y = x·clip(x/6 + 1/2, 0, 1), in two nodes: ONNX Runtime's single kernel for it is slower."""
    x = call.required(0)
    return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5))


def hard_sigmoid_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """HardSigmoid, y = clip(αx + β, 0, 1): dx = α·dy where 0 < y < 1."""
    y = call.outputs[0]
    inside = op.And(op.Greater(y, 0.0), op.Less(y, 1.0))
    return _zero_outside(op, op.Mul(dy, call.get("alpha", 0.2)), inside)


def _exponential_gradient(op: Ops, call: Call, dy: ir.Value, alpha: float, gamma: float) -> ir.Value:
    """Elu, Selu: y = γx for x > 0, else γα(eˣ − 1); dx = γ·dy, else dy·(y + γα); min(y, 0) + γα is both for α = 1."""
    y = call.outputs[0]
    dx = op.Mul(dy, op.Add(op.Min(y, op.like(0.0, y)), gamma * alpha))
    if alpha == 1.0:
        return dx
    return op.Add(dx, op.masked(op.Mul(dy, gamma * (1.0 - alpha)), op.Greater(y, 0.0)))


def elu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Elu, y = x for x > 0, else α(eˣ − 1) (Clevert et al. 2016)."""
    return _exponential_gradient(op, call, dy, call.get("alpha", 1.0), 1.0)


def celu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Celu, y = x for x > 0, else α(exp(x/α) − 1) (Barron 2017): dx = dy, else dy·(y/α + 1)."""
    y, alpha = call.outputs[0], call.get("alpha", 1.0)
    return op.Mul(dy, op.Add(op.Mul(op.Min(y, op.like(0.0, y)), 1.0 / alpha), 1.0))


def selu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Selu, y = γx for x > 0, else γα(eˣ − 1) (Klambauer et al. 2017)."""
    return _exponential_gradient(op, call, dy, call.get("alpha", _SELU_ALPHA), call.get("gamma", _SELU_GAMMA))


def softplus_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Softplus, y = log(1 + eˣ): dx = dy·s(x)."""
    return op.Mul(dy, op.Sigmoid(call.required(0)))


def softsign_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Softsign, y = x / (1 + |x|): dx = dy / (1 + |x|)²."""
    scale = op.Add(op.Abs(call.required(0)), 1.0)
    return op.Div(dy, op.Mul(scale, scale))


def thresholded_relu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """ThresholdedRelu, y = x where x > α, else 0: dx = dy where x > α."""
    return _zero_outside(op, dy, op.Greater(call.required(0), call.get("alpha", 1.0)))


def shrink_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Shrink, y = x + bias below −λ, x − bias above λ, else 0: dx = dy where |x| > λ."""
    return _zero_outside(op, dy, op.Greater(op.Abs(call.required(0)), call.get("lambd", 0.5)))


def mish_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Mish, y = x·t with t = tanh(softplus(x)): dx = dy·(t + x·(1 − t²)·s(x)) (Misra 2019, section 2)."""
    x = call.required(0)
    t = op.Tanh(op.Softplus(x))
    return op.Mul(dy, op.Add(t, op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), op.Sigmoid(x))))


def prelu_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """PRelu, y = x for x ≥ 0, else slope·x: dx = dy or dy·slope; dslope = Σ dy·x over x < 0."""
    x, slope = call.required(0), call.inputs[1]
    assert slope is not None
    negative = op.Less(x, 0.0)
    dx = op.Add(dy, op.masked(op.Mul(dy, op.Sub(slope, 1.0)), negative)) if 0 in call.wanted else None
    if 1 not in call.wanted:
        return dx, None
    return dx, op.sum_to(_zero_outside(op, op.Mul(dy, x), negative), slope, call.outputs[0])


def swish(op: Ops, call: Call) -> ir.Value:
    """Swish, y = x·s(αx)."""
    x = call.required(0)
    alpha = call.get("alpha", 1.0)
    return op.Mul(x, op.Sigmoid(x if alpha == 1.0 else op.Mul(x, alpha)))


def gelu_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Gelu: y = x·Φ(x), dx = dy·(Φ(x) + x·φ(x)) (Hendrycks & Gimpel 2016); or its tanh form.

    Tanh form: y = x/2·(1 + tanh u), u = √(2/π)(x + 0.044715x³): dx = dy·((1 + t)/2 + x/2·(1 − t²)·u′), t = tanh u.
    """
    x = call.required(0)
    if call.get("approximate", "none") == "tanh":
        x = op.Clip(x, op.like(-_GELU_END, x), op.like(_GELU_END, x))
    squared = op.Mul(x, x)
    if call.get("approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        t = op.Tanh(op.Mul(x, op.Add(op.Mul(squared, c * 0.044715), c)))
        slope = op.Mul(op.Sub(1.0, op.Mul(t, t)), op.Add(op.Mul(squared, c * 3 * 0.044715), c))
        return op.Mul(dy, op.Mul(op.Add(op.Add(t, 1.0), op.Mul(x, slope)), 0.5))
    density = op.Mul(op.Exp(op.Mul(squared, -0.5)), 1 / math.sqrt(2 * math.pi))
    cumulative = op.Mul(op.Add(op.Erf(op.Mul(x, math.sqrt(0.5))), 1.0), 0.5)
    return op.Mul(dy, op.Add(cumulative, op.Mul(x, density)))


RULES: Mapping[str, RuleOrChoice] = {
    "LogSoftmax": Custom(log_softmax_gradient),
    "Softmax": Custom(softmax_gradient),
    "Sigmoid": Custom(sigmoid_gradient),
    "Tanh": Custom(tanh_gradient),
    "Relu": Custom(relu_gradient),
    "LeakyRelu": Custom(leaky_relu_gradient),
    "HardSwish": Expanded(hard_swish),
    "HardSigmoid": Custom(hard_sigmoid_gradient),
    "Elu": Custom(elu_gradient),
    "Celu": Custom(celu_gradient),
    "Selu": Custom(selu_gradient),
    "Softplus": Custom(softplus_gradient),
    "Softsign": Custom(softsign_gradient),
    "ThresholdedRelu": Custom(thresholded_relu_gradient),
    "Shrink": Custom(shrink_gradient),
    "Mish": Custom(mish_gradient),
    "PRelu": Custom(prelu_gradient, inputs=frozenset({0, 1})),
    "Swish": Expanded(swish),
    "Gelu": Custom(gelu_gradient),
}
