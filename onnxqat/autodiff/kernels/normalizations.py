"""Backward kernel of LayerNormalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Formula
from onnxqat.autodiff.shapes import reshape
from onnxqat.graph.ops import Ops


def layer_normalization_grad(op: Ops, call: Call) -> Sequence[ir.Value]:
    """(dy, x, scale, μ, 1/σ), of which the axes from `axis` on are normalized: dx, dscale, dbias; see `through`."""
    dy, x, scale, mean, inverse = (call.required(i) for i in range(5))
    rows, data, mean, inverse = (op.Flatten(value, axis=call.get("axis", -1)) for value in (dy, x, mean, inverse))
    normal = op.Mul(op.Sub(data, mean), inverse)
    dx = through(op, op.Mul(rows, reshape(op, scale, [1, -1])), normal, inverse, [1])
    shape = op.Shape(scale)
    dscale, dbias = (op.reduce("Sum", value, [0], keepdims=False) for value in (op.Mul(rows, normal), rows))
    return op.Reshape(dx, op.Shape(x)), op.Reshape(dscale, shape), op.Reshape(dbias, shape)


def through(op: Ops, g: ir.Value, normal: ir.Value, inverse: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The gradient g of x̂ = (x − μ)/σ taken back to x: (g − mean g − x̂·mean(g·x̂))/σ (Ioffe & Szegedy 2015, section 3)."""
    projected = op.Mul(normal, op.reduce("Mean", op.Mul(g, normal), axes, keepdims=True))
    return op.Mul(op.Sub(op.Sub(g, op.reduce("Mean", g, axes, keepdims=True)), projected), inverse)


BODIES: Mapping[str, Formula] = {"LayerNormalizationGrad": layer_normalization_grad}
