"""Gradients of powers, bounds, matrix products and dropout.

x is the first input, y the output, dy the output's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Rule, RuleOrChoice
from onnxqat.graph.ops import Ops, same_shape


def pow_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Pow, y = xᵇ: dx = dy·b·x^(b−1), 0 for b = 0; db = dy·y·ln x where x > 0, else 0.

    Where one has no bound, it is 0.
    """
    x, exponent = call.required(0), call.required(1)
    results: list[ir.Value | None] = [None, None]
    if 0 in call.wanted:
        results[0] = op.sum_to(_power_gradient(op, call, dy, x, exponent), x, call.outputs[0])
    if 1 in call.wanted:
        positive = op.Greater(x, op.like(0.0, x))
        logarithm = op.Log(op.Where(positive, x, op.like(1.0, x)))
        slope = op.finite(op.Mul(call.outputs[0], logarithm))
        results[1] = op.sum_to(op.Mul(dy, slope), exponent, call.outputs[0])
    return results


def _power_gradient(op: Ops, call: Call, dy: ir.Value, x: ir.Value, exponent: ir.Value) -> ir.Value:
    if call.constant(1) == [2] and 1 not in call.wanted:
        return op.Mul(op.Mul(dy, 2.0), x)
    return op.Mul(dy, _power_slope(op, call, x, exponent))


def _power_slope(op: Ops, call: Call, x: ir.Value, exponent: ir.Value) -> ir.Value:
    known = call.constant(1)
    if known == [0.5] and 1 not in call.wanted:
        return op.finite(op.Div(op.like(0.5, x), call.outputs[0]))
    power = exponent if exponent.dtype == x.dtype else op.Cast(exponent, to=x.dtype)
    slope = op.finite(op.Mul(power, op.Pow(x, op.Sub(power, 1.0))))
    if known is not None and 0 not in known and 1 not in call.wanted:
        return slope
    return op.Where(op.Equal(power, op.like(0.0, x)), op.like(0.0, x), slope)


def where_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Gradient of Where, y = a if the condition holds, else b: da, db = Σ dy there, elsewhere, over broadcast axes."""
    condition, a, b = (call.required(i) for i in range(3))
    y, none = call.outputs[0], op.like(0.0, dy)
    whole = same_shape(condition, y)
    da = db = None
    if 1 in call.wanted:
        da = op.sum_to(op.masked(dy, condition) if whole else op.Where(condition, dy, none), a, y)
    if 2 in call.wanted:
        db = op.sum_to(op.masked(dy, op.Not(condition)) if whole else op.Where(condition, none, dy), b, y)
    return [None, da, db]


def clip_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Clip, y = min(max(x, low), high): dx = dy where low ≤ x ≤ high; a bound gets Σ dy of what it cuts, high first."""
    x, low, high = call.required(0), call.input(1), call.input(2)
    above = None if low is None else op.GreaterOrEqual(x, low)
    below = None if high is None else op.LessOrEqual(x, high)
    inside = (below if above is None else above) if above is None or below is None else op.And(above, below)
    dx = dy if inside is None else op.masked(dy, inside)
    dlow = dhigh = None
    if 1 in call.wanted:
        cut = op.Not(above) if high is None else op.And(op.Not(above), op.Less(low, high))
        dlow = op.Reshape(op.reduce("Sum", op.masked(dy, cut), None, keepdims=False), op.Shape(low))
    if 2 in call.wanted:
        raised = x if low is None else op.Max(x, low)
        cut = op.Greater(raised, high)
        dhigh = op.Reshape(op.reduce("Sum", op.masked(dy, cut), None, keepdims=False), op.Shape(high))
    return [dx, dlow, dhigh]


def matmul_rule(node: ir.Node) -> Rule:
    """Vectors become matrices of one row or column."""
    ranks = [None if value is None or value.shape is None else len(value.shape) for value in node.inputs]
    return Expanded(matmul_of_matrices) if 1 in ranks else Custom(matmul_gradient)


def matmul_of_matrices(op: Ops, call: Call) -> ir.Value:
    """numpy.matmul's rule for vectors: a leading axis in front of the first, a trailing one behind the second."""
    a, b = call.required(0), call.required(1)
    row, column = call.rank(0) == 1, call.rank(1) == 1
    product = op.MatMul(
        op.Unsqueeze(a, op.ints([0])) if row else a,
        op.Unsqueeze(b, op.ints([1])) if column else b,
    )
    axes = ([-1] if column else []) + ([-2] if row else [])
    return op.Squeeze(product, op.ints(axes))


def matmul_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """MatMul, y = a·b: da = dy·bᵀ, db = aᵀ·dy, summed over what was broadcast. One matrix b sees a stack as more rows."""
    a, b = call.required(0), call.required(1)
    da = db = None
    if call.rank(1) == 2:
        rows = op.Flatten(dy, axis=-1)
        if 0 in call.wanted:
            da = op.Reshape(op.Gemm(rows, b, transB=1), op.Shape(a))
        if 1 in call.wanted:
            db = op.Gemm(op.Flatten(a, axis=-1), rows, transA=1)
        return [da, db]
    if 0 in call.wanted:
        da = _of_stack(op, op.kernel("FusedMatMul", dy, b, transB=1)[0], a, call.outputs[0])
    if 1 in call.wanted:
        db = _of_stack(op, op.kernel("FusedMatMul", a, dy, transA=1)[0], b, call.outputs[0])
    return [da, db]


def _of_stack(op: Ops, gradient: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    if x.shape is not None and y.shape is not None:
        gradient.shape = ir.Shape([*y.shape[:-2], *x.shape[-2:]])
    return op.sum_to(gradient, x, gradient)


def gemm_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """Gemm, y = α·A·B + β·c, with A = aᵀ for transA and B = bᵀ for transB: dA = α·dy·Bᵀ, dB = α·Aᵀ·dy, dc = β·Σ dy."""
    a, b, c = call.required(0), call.required(1), call.input(2)
    across, along, alpha = call.get("transA", 0), call.get("transB", 0), call.get("alpha", 1.0)
    da = db = dc = None
    if 0 in call.wanted:
        left, right = (b, dy) if across else (dy, b)
        da = op.Gemm(left, right, alpha=alpha, transA=across and along, transB=1 if across else 1 - along)
    if 1 in call.wanted:
        left, right = (dy, a) if along else (a, dy)
        db = op.Gemm(left, right, alpha=alpha, transA=1 if along else 1 - across, transB=along and across)
    if 2 in call.wanted and c is not None:
        beta = call.get("beta", 1.0)
        dc = op.sum_to(dy if beta == 1.0 else op.Mul(dy, beta), c, call.outputs[0])
    return [da, db, dc]


def dropout_rule(node: ir.Node) -> Rule:
    """Dropout of an inference graph is the identity."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if training is None else ir.convenience.get_const_tensor(training)
    if training is None or (known is not None and not known.numpy().any()):
        return Expanded(identity_dropout, inputs=frozenset({0}), steering=frozenset({1}))
    return Custom(dropout_gradient, inputs=frozenset({0}), steering=frozenset({1}), outputs=2)


def identity_dropout(op: Ops, call: Call) -> list[ir.Value]:
    """Writes a dropout that keeps everything."""
    x = call.required(0)
    kept = op.ConstantOfShape(op.Shape(x), value=ir.tensor([True]))
    return [op.Identity(x), kept][: len(call.outputs)]


def dropout_gradient(op: Ops, call: Call, dy: ir.Value, _: ir.Value | None = None) -> ir.Value:
    """Srivastava et al. 2014: y = x·mask/(1 − ratio) in training, y = x otherwise, so dx likewise."""
    ratio, training = call.input(1), call.required(2)
    half = op.like(0.5, dy) if ratio is None else ratio
    half = half if half.dtype == dy.dtype else op.Cast(half, to=dy.dtype)
    scale = op.Where(training, op.Reciprocal(op.Sub(1.0, half)), op.like(1.0, dy))
    return op.masked(op.Mul(dy, scale), call.outputs[1])


RULES: Mapping[str, RuleOrChoice] = {
    "Pow": Custom(pow_gradient),
    "Where": Custom(where_gradient, inputs=frozenset({1, 2})),
    "Clip": Custom(clip_gradient),
    "MatMul": matmul_rule,
    "Gemm": Custom(gemm_gradient),
    "Dropout": dropout_rule,
}
