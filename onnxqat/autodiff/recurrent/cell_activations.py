"""The activation functions that recurrent operators may name, and their derivatives, as in the ONNX specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxqat.graph.ops import Ops

_Function: TypeAlias = Callable[[Ops, ir.Value, float, float], ir.Value]
_Slope: TypeAlias = Callable[[Ops, ir.Value, ir.Value, float, float], ir.Value]


@dataclass(frozen=True)
class _Definition:
    """y = function(x), y' = slope(x, y); `alpha` and `beta` are defaults, None where the function has none."""

    function: _Function
    slope: _Slope
    alpha: float | None = None
    beta: float | None = None


def _when(op: Ops, condition: ir.Value, inside: ir.Value, outside: ir.Value) -> ir.Value:
    return op.Where(condition, inside, outside)


def _constant(op: Ops, x: ir.Value, value: float) -> ir.Value:
    return op.Add(op.Mul(x, 0.0), value)


def _step(op: Ops, x: ir.Value, condition: ir.Value, inside: float, outside: float) -> ir.Value:
    return _when(op, condition, _constant(op, x, inside), _constant(op, x, outside))


def _affine(op: Ops, x: ir.Value, a: float, b: float) -> ir.Value:
    return op.Add(op.Mul(x, a), b)


def _scaled_tanh_slope(op: Ops, x: ir.Value, y: ir.Value, a: float, b: float) -> ir.Value:
    t = op.Tanh(op.Mul(x, b))
    return op.Mul(op.Sub(1.0, op.Mul(t, t)), a * b)


def _hard_sigmoid_slope(op: Ops, x: ir.Value, y: ir.Value, a: float, b: float) -> ir.Value:
    return _step(op, x, op.And(op.Greater(y, 0.0), op.Less(y, 1.0)), a, 0.0)


def _elu_slope(op: Ops, x: ir.Value, y: ir.Value, a: float, b: float) -> ir.Value:
    return _when(op, op.Greater(x, 0.0), _constant(op, x, 1.0), op.Add(y, a))


def _softsign_slope(op: Ops, x: ir.Value, y: ir.Value, a: float, b: float) -> ir.Value:
    scale = op.Add(op.Abs(x), 1.0)
    return op.Reciprocal(op.Mul(scale, scale))


TABLE: Mapping[str, _Definition] = {
    "sigmoid": _Definition(lambda op, x, a, b: op.Sigmoid(x), lambda op, x, y, a, b: op.Mul(y, op.Sub(1.0, y))),
    "tanh": _Definition(lambda op, x, a, b: op.Tanh(x), lambda op, x, y, a, b: op.Sub(1.0, op.Mul(y, y))),
    "relu": _Definition(
        lambda op, x, a, b: op.Relu(x), lambda op, x, y, a, b: _step(op, x, op.Greater(x, 0.0), 1.0, 0.0)
    ),
    "affine": _Definition(_affine, lambda op, x, y, a, b: _constant(op, x, a), 1.0, 0.0),
    "leakyrelu": _Definition(
        lambda op, x, a, b: op.LeakyRelu(x, alpha=a),
        lambda op, x, y, a, b: _step(op, x, op.Greater(x, 0.0), 1.0, a),
        0.01,
    ),
    "thresholdedrelu": _Definition(
        lambda op, x, a, b: op.ThresholdedRelu(x, alpha=a),
        lambda op, x, y, a, b: _step(op, x, op.Greater(x, a), 1.0, 0.0),
        1.0,
    ),
    "scaledtanh": _Definition(
        lambda op, x, a, b: op.Mul(op.Tanh(op.Mul(x, b)), a),
        _scaled_tanh_slope,
        1.0,
        1.0,
    ),
    "hardsigmoid": _Definition(lambda op, x, a, b: op.HardSigmoid(x, alpha=a, beta=b), _hard_sigmoid_slope, 0.2, 0.5),
    "elu": _Definition(lambda op, x, a, b: op.Elu(x, alpha=a), _elu_slope, 1.0),
    "softsign": _Definition(lambda op, x, a, b: op.Softsign(x), _softsign_slope),
    "softplus": _Definition(lambda op, x, a, b: op.Softplus(x), lambda op, x, y, a, b: op.Sigmoid(x)),
}


@dataclass(frozen=True)
class Activation:
    """An activation function with its parameters."""

    name: str
    alpha: float
    beta: float

    def apply(self, op: Ops, x: ir.Value) -> ir.Value:
        """Writes y = f(x)."""
        return TABLE[self.name].function(op, x, self.alpha, self.beta)

    def slope(self, op: Ops, x: ir.Value, y: ir.Value) -> ir.Value:
        """Writes f'(x), where f(x) = y."""
        return TABLE[self.name].slope(op, x, y, self.alpha, self.beta)


def chosen(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Activation]:
    """Gives each function its parameters: those listed go in order to the functions that have one."""
    remaining_alphas, remaining_betas = iter(alphas), iter(betas)
    functions = []
    for name in names:
        key = name.lower()
        definition = TABLE[key]
        alpha, beta = definition.alpha, definition.beta
        functions.append(
            Activation(
                key,
                0.0 if alpha is None else float(next(remaining_alphas, alpha)),
                0.0 if beta is None else float(next(remaining_betas, beta)),
            )
        )
    return functions
