"""Gradients of normalizations, from their definitions in the ONNX specification.

Those that standardize share one derivation (Ioffe & Szegedy 2015, section 3): with x̂ = (x − μ)/σ over some axes and the
gradient g of x̂, dx = (g − mean g − x̂·mean(g·x̂))/σ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.autodiff.kernels.normalizations import through
from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, Rule, RuleOrChoice
from onnxqat.autodiff.shapes import reshape, size, zeros
from onnxqat.graph.ops import Ops


def _mean(op: Ops, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    return op.reduce("Mean", x, axes, keepdims=True)


def _standardized(op: Ops, x: ir.Value, axes: Sequence[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """Returns x̂ and 1/σ, with σ² the variance + epsilon."""
    centered = op.Sub(x, _mean(op, x, axes))
    variance = _mean(op, op.Mul(centered, centered), axes)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return op.Mul(centered, inverse), inverse


def _flat(op: Ops, x: ir.Value) -> ir.Value:
    """[N, C, …] as [N, C, rest]."""
    return reshape(op, x, [0, 0, -1])


def _channel(op: Ops, vector: ir.Value) -> ir.Value:
    """[C] as [1, C, 1]."""
    return reshape(op, vector, [1, -1, 1])


def batch_normalization_rule(node: ir.Node) -> Rule:
    """Takes only the inference form: training statistics belong to a framework's training loop."""
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1:
        return Refused("it updates its statistics (training mode); export the model for inference")
    return Custom(batch_normalization_gradient)


def batch_normalization_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """BatchNormalization, y = s·(x − μ)·r + b with r = (v + ε)^(−1/2), all of them given.

    dx = s·r·dy; ds = Σ dy·(x − μ)·r; db = Σ dy; dμ = −s·r·Σ dy; dv = −s·r³/2 · Σ dy·(x − μ).
    """
    x, scale, mean, variance = (call.required(i) for i in (0, 1, 3, 4))
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, call.get("epsilon", 1e-5))))
    gain = op.Mul(scale, inverse)
    flat = _flat(op, dy)
    results: list[ir.Value | None] = [None] * 5
    if 0 in call.wanted:
        results[0] = op.Reshape(op.Mul(flat, _channel(op, gain)), op.Shape(x))
    total = op.reduce("Sum", flat, [0, 2], keepdims=False)
    if call.wanted & {1, 4}:
        centered = op.Sub(_flat(op, x), _channel(op, mean))
        moment = op.Mul(op.reduce("Sum", op.Mul(flat, centered), [0, 2], keepdims=False), inverse)
        results[1] = moment
        results[4] = op.Mul(op.Mul(moment, op.Mul(gain, inverse)), -0.5)
    results[2] = total
    results[3] = op.Neg(op.Mul(total, gain))
    return results


def instance_normalization_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """InstanceNormalization, y = s·x̂ + b over the spatial axes: ds = Σ dy·x̂, db = Σ dy (Ulyanov et al. 2016)."""
    x, scale = call.required(0), call.required(1)
    flat = _flat(op, dy)
    normal, inverse = _standardized(op, _flat(op, x), [2], call.get("epsilon", 1e-5))
    dx = None
    if 0 in call.wanted:
        dx = op.Reshape(through(op, op.Mul(flat, _channel(op, scale)), normal, inverse, [2]), op.Shape(x))
    dscale = op.reduce("Sum", op.Mul(flat, normal), [0, 2], keepdims=False)
    return [dx, dscale, op.reduce("Sum", flat, [0, 2], keepdims=False)]


def group_normalization(op: Ops, call: Call) -> ir.Value:
    """InstanceNormalization of groups, then scale and bias per channel (Wu & He 2018): opset 21, ONNX withdrew that of 18."""
    x, scale, bias = call.required(0), call.required(1), call.required(2)
    groups = call.get("num_groups")
    ones, none = (op.Constant(value=ir.tensor([number] * groups, dtype=x.dtype)) for number in (1, 0))
    grouped = reshape(op, x, [0, groups, -1])
    normal = op.InstanceNormalization(grouped, ones, none, epsilon=call.get("epsilon", 1e-5))
    normal = _flat(op, op.Reshape(normal, op.Shape(x)))
    return op.Reshape(op.Add(op.Mul(normal, _channel(op, scale)), _channel(op, bias)), op.Shape(x))


def mean_variance_normalization(op: Ops, call: Call) -> ir.Value:
    """Writes y = (x − μ)/(σ + 1e-9) over `axes`: ONNX Runtime cannot have the operator inside a function."""
    x, axes = call.required(0), call.get("axes", [0, 2, 3])
    centered = op.Sub(x, _mean(op, x, axes))
    deviation = op.Sqrt(_mean(op, op.Mul(centered, centered), axes))
    return op.Div(centered, op.Add(deviation, 1e-9))


def layer_normalization_gradient(
    op: Ops, call: Call, dy: ir.Value | None, dmean: ir.Value | None, dinverse: ir.Value | None
) -> list[ir.Value | None]:
    """Ba et al. 2016: y = s·x̂ + b, see `kernels.normalizations`; the outputs μ and r = 1/σ add dμ/n − dr·r³·(x − μ)/n."""
    x, scale = call.required(0), call.required(1)
    mean, inverse = call.outputs[1:3]
    dx = dscale = dbias = None
    if dy is not None:
        attributes = {"axis": call.get("axis", -1)}
        dx, dscale, dbias = op.kernel("LayerNormalizationGrad", dy, x, scale, mean, inverse, _outputs=3, **attributes)
    if 0 in call.wanted and (dmean is not None or dinverse is not None):
        share = _statistics_gradient(op, call, dmean, dinverse)
        dx = share if dx is None else op.Add(dx, share)
    shape = op.Shape(scale)
    dscale = zeros(op, shape, scale.dtype) if dscale is None else op.Reshape(dscale, shape)  # type: ignore[arg-type]
    dbias = zeros(op, shape, scale.dtype) if dbias is None else op.Reshape(dbias, shape)  # type: ignore[arg-type]
    return [dx, dscale, dbias]


def _statistics_gradient(op: Ops, call: Call, dmean: ir.Value | None, dinverse: ir.Value | None) -> ir.Value:
    x, (mean, inverse) = call.required(0), call.outputs[1:3]
    count = op.Cast(op.Div(op.Size(x), op.Size(mean)), to=x.dtype)
    total = None
    if dinverse is not None:
        slope = op.Mul(dinverse, op.Mul(op.Mul(inverse, inverse), inverse))
        total = op.Neg(op.Mul(op.Sub(x, mean), op.Div(slope, count)))
    if dmean is not None:
        share = op.Div(dmean, count)
        total = op.Expand(share, op.Shape(x)) if total is None else op.Add(total, share)
    assert total is not None
    return total


def lp_normalization_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """LpNormalization, y = x/n, n = ‖x‖ₚ: dx = (dy − c·Σ dy·y)/n, c = y for p = 2, sign x for p = 1; 0 where n = 0."""
    x, y, axes, p = call.required(0), call.outputs[0], [call.get("axis", -1)], call.get("p", 2)
    norm = op.reduce("L1" if p == 1 else "L2", x, axes, keepdims=True)
    inverse = op.finite(op.Reciprocal(norm))
    along = op.reduce("Sum", op.Mul(dy, y), axes, keepdims=True)
    direction = op.Sign(x) if p == 1 else y
    return op.Mul(op.Sub(dy, op.Mul(direction, along)), inverse)


def lrn_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """Krizhevsky et al. 2012, section 3.3: y = x·D^(−β), D = k + α·mean of x² over a window of channels.

    dx = dy·D^(−β) − 2αβ·x · (mean of dy·y/D over the mirrored window), where the mean divides by the window's whole size.
    """
    x, y, width = call.required(0), call.outputs[0], call.get("size")
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    front, back = (width - 1) // 2, width - 1 - (width - 1) // 2

    def mean(values: ir.Value, before: int, after: int) -> ir.Value:
        """Mean over channels c − before to c + after: pooling of [N, 1, C, rest]."""
        planes = reshape(op, values, [0, 1], op.Unsqueeze(size(op, x, 1), op.ints([0])), [-1])
        pooled = op.AveragePool(planes, kernel_shape=[width, 1], pads=[before, 0, after, 0], count_include_pad=1)
        return op.Reshape(pooled, op.Shape(x))

    scale = op.Add(op.Mul(mean(op.Mul(x, x), front, back), alpha), bias)
    through = mean(op.Div(op.Mul(dy, y), scale), back, front)
    direct = op.Mul(dy, op.Pow(scale, op.like(-beta, x)))
    return op.Sub(direct, op.Mul(op.Mul(x, through), 2 * alpha * beta))


RULES: Mapping[str, RuleOrChoice] = {
    "BatchNormalization": batch_normalization_rule,
    "InstanceNormalization": Custom(instance_normalization_gradient),
    "GroupNormalization": Expanded(group_normalization),
    "MeanVarianceNormalization": Expanded(mean_variance_normalization),
    "LayerNormalization": Custom(layer_normalization_gradient, outputs=3),
    "LpNormalization": Custom(lp_normalization_gradient),
    "LRN": Custom(lrn_gradient),
}
