"""Gradients of sums, products, quotients, roots, logarithms, trigonometric and hyperbolic functions, with broadcasting.

Derivatives as in Abramowitz & Stegun, 4.3 to 4.6; x is the input, y the output, dy the output's gradient. At the edge of a
domain, where a derivative has no bound, it counts as 0 (see `Ops.finite`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, Rule, RuleOrChoice
from onnxqat.graph.ops import Ops


def _present(call: Call) -> list[ir.Value]:
    return [value for value in call.inputs if value is not None]


def add_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Add, y = a + b: da = db = Σ dy over broadcast axes."""
    return [op.sum_to(dy, x, call.outputs[0]) if i in call.wanted else None for i, x in enumerate(_present(call))]


def sub_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Sub, y = a − b: da = Σ dy, db = −Σ dy."""
    da, db = add_gradient(op, call, dy)
    return da, None if db is None else op.Neg(db)


def mul_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Mul, y = a·b: da = Σ dy·b, db = Σ dy·a."""
    a, b = _present(call)
    pairs = ((a, b), (b, a))
    y = call.outputs[0]
    return [op.sum_to(op.Mul(dy, other), x, y) if i in call.wanted else None for i, (x, other) in enumerate(pairs)]


def extremum_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Max, Min: dy for the operands that are it, divided by their number."""
    operands, y = _present(call), call.outputs[0]
    chosen = [op.Cast(op.Equal(x, y), to=y.dtype) for x in operands]
    share = op.Div(dy, reduce(op.Add, chosen))
    pairs = enumerate(zip(operands, chosen, strict=True))
    return [op.sum_to(op.Mul(share, mask), x, y) if i in call.wanted else None for i, (x, mask) in pairs]


def neg_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Neg: dx = −dy."""
    return op.Neg(dy)


def abs_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Abs: dx = dy·sign x."""
    return op.Mul(dy, op.Sign(call.required(0)))


def sin_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Sin: dx = dy·cos x."""
    return op.Mul(dy, op.Cos(call.required(0)))


def cos_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Cos: dx = −dy·sin x."""
    return op.Neg(op.Mul(dy, op.Sin(call.required(0))))


def erf_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Erf: dx = dy·2/√π·exp(−x²)."""
    x = call.required(0)
    return op.Mul(dy, op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2 / math.sqrt(math.pi)))


def sqrt_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Sqrt: dx = dy / 2y."""
    y = call.outputs[0]
    return op.Mul(dy, op.finite(op.Div(op.like(0.5, y), y)))


def exp_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Exp: dx = dy·y."""
    return op.Mul(dy, op.finite(call.outputs[0]))


def log_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Log: dx = dy / x."""
    return op.Mul(dy, op.finite(op.Reciprocal(call.required(0))))


def reciprocal_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Reciprocal: dx = −dy·y²."""
    y = call.outputs[0]
    return op.Neg(op.Mul(dy, op.finite(op.Mul(y, y))))


def div_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Div, y = a/b: da = dy/b, db = −Σ dy·y/b."""
    a, b = _present(call)
    y = call.outputs[0]
    inverse = op.finite(op.Reciprocal(b))
    da = op.sum_to(op.Mul(dy, inverse), a, y) if 0 in call.wanted else None
    if 1 not in call.wanted:
        return da, None
    return da, op.sum_to(op.Neg(op.Mul(dy, op.finite(op.Mul(y, inverse)))), b, y)


def acos_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Acos: dx = −dy / √(1 − x²)."""
    return op.Neg(asin_gradient(op, call, dy))


def asin_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Asin: dx = dy / √(1 − x²)."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Reciprocal(op.Sqrt(op.Sub(1.0, op.Mul(x, x))))))


def atan_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Atan: dx = dy / (1 + x²)."""
    (x,) = _present(call)
    return op.Div(dy, op.Add(op.Mul(x, x), 1.0))


def acosh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Acosh: dx = dy / √(x² − 1)."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Reciprocal(op.Sqrt(op.Sub(op.Mul(x, x), 1.0)))))


def asinh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Asinh: dx = dy / √(x² + 1); 0 where the square overflows."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Reciprocal(op.Sqrt(op.Add(op.Mul(x, x), 1.0)))))


def atanh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Atanh: dx = dy / (1 − x²)."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Reciprocal(op.Sub(1.0, op.Mul(x, x)))))


def tan_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Tan: dx = dy·(1 + y²)."""
    y = call.outputs[0]
    return op.Mul(dy, op.Add(op.Mul(y, y), 1.0))


def sinh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Sinh: dx = dy·cosh x, with cosh x = (eˣ + e⁻ˣ)/2."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Mul(op.Add(op.Exp(x), op.Exp(op.Neg(x))), 0.5)))


def cosh_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Cosh: dx = dy·sinh x, with sinh x = (eˣ − e⁻ˣ)/2."""
    (x,) = _present(call)
    return op.Mul(dy, op.finite(op.Mul(op.Sub(op.Exp(x), op.Exp(op.Neg(x))), 0.5)))


def sum_as_adds(op: Ops, call: Call) -> ir.Value:
    """Sum, y = x₀ + x₁ + …, with broadcasting."""
    return reduce(op.Add, _present(call))


def mean_as_adds(op: Ops, call: Call) -> ir.Value:
    """Mean, y = (x₀ + x₁ + …) / n, with broadcasting."""
    return op.Div(sum_as_adds(op, call), float(len(_present(call))))


def mod_rule(node: ir.Node) -> Rule:
    """Returns the rule of Mod; ONNX Runtime's kernel computes the remainder of floats in C's sense only."""
    if not node.attributes.get_int("fmod", 0):
        return Refused("ONNX Runtime takes the remainder of floats only with fmod=1")
    return Custom(mod_gradient, inputs=frozenset({0, 1}))


def mod_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value | None]:
    """Mod, y = a − b·q with an integer quotient q: da = dy, db = −Σ dy·q where q = (a − y)/b is locally constant."""
    a, b = _present(call)
    y = call.outputs[0]
    da = op.sum_to(dy, a, y) if 0 in call.wanted else None
    if 1 not in call.wanted:
        return da, None
    quotient = op.finite(op.Round(op.Div(op.Sub(a, y), b)))
    return da, op.sum_to(op.Neg(op.Mul(dy, quotient)), b, y)


RULES: Mapping[str, RuleOrChoice] = {
    "Abs": Custom(abs_gradient),
    "Add": Custom(add_gradient),
    "Cos": Custom(cos_gradient),
    "Erf": Custom(erf_gradient),
    "Max": Custom(extremum_gradient),
    "Min": Custom(extremum_gradient),
    "Mul": Custom(mul_gradient),
    "Neg": Custom(neg_gradient),
    "Sin": Custom(sin_gradient),
    "Sub": Custom(sub_gradient),
    "Div": Custom(div_gradient),
    "Exp": Custom(exp_gradient),
    "Log": Custom(log_gradient),
    "Reciprocal": Custom(reciprocal_gradient),
    "Sqrt": Custom(sqrt_gradient),
    "Acos": Custom(acos_gradient),
    "Acosh": Custom(acosh_gradient),
    "Asin": Custom(asin_gradient),
    "Asinh": Custom(asinh_gradient),
    "Atan": Custom(atan_gradient),
    "Atanh": Custom(atanh_gradient),
    "Cosh": Custom(cosh_gradient),
    "Sinh": Custom(sinh_gradient),
    "Tan": Custom(tan_gradient),
    "Sum": Expanded(sum_as_adds),
    "Mean": Expanded(mean_as_adds),
    "Mod": mod_rule,
}
