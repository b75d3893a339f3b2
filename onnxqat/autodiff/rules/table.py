"""The table that joins each operator to its gradient rule."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Custom, Expanded, Refused, Registered, Rule, RuleOrChoice, Trusted
from onnxqat.autodiff.rules import (
    activations,
    arithmetic,
    convolution,
    determinant,
    einsum,
    elementwise,
    grid,
    indexing,
    layout,
    losses,
    normalizations,
    pooling,
    recurrent,
    reductions,
    refusals,
    resize,
    spectral,
)

_FIRST = frozenset({0})


def _custom(gradient: object, *inputs: int) -> Custom:
    return Custom(gradient, frozenset(inputs) if inputs else None)  # type: ignore[arg-type]


_NAMES_TRUSTED = """
    Abs Add Cast Concat Cos Erf Expand Flatten Gather GatherElements GatherND GlobalAveragePool Identity
    LogSoftmax Max Min Mul Neg ReduceMean ReduceSum Reshape Sigmoid Sin
    Softmax Split Squeeze Sub Tanh Tile TopK Transpose Unsqueeze
"""
_ORT: Mapping[str, RuleOrChoice] = dict.fromkeys(_NAMES_TRUSTED.split(), Trusted())
_OURS: Mapping[str, RuleOrChoice] = {
    "Relu": _custom(activations.relu_gradient),
    "LeakyRelu": _custom(activations.leaky_relu_gradient),
    "HardSwish": Expanded(activations.hard_swish),
    "HardSigmoid": _custom(activations.hard_sigmoid_gradient),
    "Elu": _custom(activations.elu_gradient),
    "Celu": _custom(activations.celu_gradient),
    "Selu": _custom(activations.selu_gradient),
    "Softplus": _custom(activations.softplus_gradient),
    "Softsign": _custom(activations.softsign_gradient),
    "ThresholdedRelu": _custom(activations.thresholded_relu_gradient),
    "Shrink": _custom(activations.shrink_gradient),
    "Mish": _custom(activations.mish_gradient),
    "PRelu": _custom(activations.prelu_gradient, 0, 1),
    "Swish": Expanded(activations.swish),
    "Gelu": _custom(activations.gelu_gradient),
    "Div": _custom(elementwise.div_gradient),
    "Exp": _custom(elementwise.exp_gradient),
    "Log": _custom(elementwise.log_gradient),
    "Reciprocal": _custom(elementwise.reciprocal_gradient),
    "Sqrt": _custom(elementwise.sqrt_gradient),
    "Acos": _custom(elementwise.acos_gradient),
    "Acosh": _custom(elementwise.acosh_gradient),
    "Asin": _custom(elementwise.asin_gradient),
    "Asinh": _custom(elementwise.asinh_gradient),
    "Atan": _custom(elementwise.atan_gradient),
    "Atanh": _custom(elementwise.atanh_gradient),
    "Cosh": _custom(elementwise.cosh_gradient),
    "Sinh": _custom(elementwise.sinh_gradient),
    "Tan": _custom(elementwise.tan_gradient),
    "Sum": Expanded(elementwise.sum_as_adds),
    "Mean": Expanded(elementwise.mean_as_adds),
    "Mod": elementwise.mod_rule,
}

_LAYOUT: Mapping[str, RuleOrChoice] = {
    "DepthToSpace": _custom(layout.depth_to_space_gradient),
    "SpaceToDepth": _custom(layout.space_to_depth_gradient),
    "CenterCropPad": _custom(layout.center_crop_pad_gradient),
    "ReverseSequence": layout.reverse_sequence_rule,
    "Trilu": _custom(layout.trilu_gradient),
    "CumSum": _custom(layout.cumsum_gradient),
    "Compress": layout.compress_rule,
    "Col2Im": layout.col2im_rule,
    "OneHot": Custom(layout.one_hot_gradient, frozenset({2}), steering=frozenset({0, 1})),
    "Range": Custom(layout.range_gradient, frozenset({0, 2}), steering=frozenset({1})),
    "CastLike": Custom(layout.cast_like_gradient, _FIRST, steering=frozenset({1})),
    "MaxUnpool": layout.max_unpool_rule,
    "Einsum": einsum.einsum_rule,
}

_ARITHMETIC: Mapping[str, RuleOrChoice] = {
    "Pow": _custom(arithmetic.pow_gradient),
    "Where": Custom(arithmetic.where_gradient, frozenset({1, 2})),
    "Clip": _custom(arithmetic.clip_gradient),
    "MatMul": arithmetic.matmul_rule,
    "Gemm": arithmetic.gemm_rule,
    "Dropout": arithmetic.dropout_rule,
}

_INDEXING: Mapping[str, RuleOrChoice] = {
    "Pad": _custom(indexing.pad_gradient, 0, 2),
    "Slice": indexing.slice_rule,
    "ScatterElements": indexing.scatter_rule,
    "ScatterND": indexing.scatter_rule,
}

_REDUCTIONS: Mapping[str, RuleOrChoice] = {
    "ReduceL1": _custom(reductions.reduce_l1_gradient),
    "ReduceL2": _custom(reductions.reduce_l2_gradient),
    "ReduceLogSum": _custom(reductions.reduce_log_sum_gradient),
    "ReduceLogSumExp": _custom(reductions.reduce_log_sum_exp_gradient),
    "ReduceSumSquare": _custom(reductions.reduce_sum_square_gradient),
    "ReduceProd": _custom(reductions.reduce_prod_gradient),
    "ReduceMax": _custom(reductions.reduce_extremum_gradient),
    "ReduceMin": _custom(reductions.reduce_extremum_gradient),
}

_NORMALIZATIONS: Mapping[str, RuleOrChoice] = {
    "BatchNormalization": normalizations.batch_normalization_rule,
    "InstanceNormalization": _custom(normalizations.instance_normalization_gradient),
    "GroupNormalization": Expanded(normalizations.group_normalization),
    "MeanVarianceNormalization": Expanded(normalizations.mean_variance_normalization),
    "LayerNormalization": Custom(normalizations.layer_normalization_gradient, outputs=3),
    "LpNormalization": _custom(normalizations.lp_normalization_gradient),
    "LRN": _custom(normalizations.lrn_gradient),
}

_CONVOLUTION_AND_POOLING: Mapping[str, RuleOrChoice] = {
    "Conv": convolution.conv_rule,
    "ConvTranspose": convolution.conv_transpose_rule,
    "AveragePool": pooling.average_pool_rule,
    "MaxPool": pooling.max_pool_rule,
    "LpPool": _custom(pooling.lp_pool_gradient),
    "GlobalLpPool": _custom(pooling.global_lp_pool_gradient),
    "GlobalMaxPool": _custom(pooling.global_max_pool_gradient),
}

_LOSSES: Mapping[str, RuleOrChoice] = {
    "NegativeLogLikelihoodLoss": _custom(losses.negative_log_likelihood_gradient, 0, 2),
    "SoftmaxCrossEntropyLoss": losses.softmax_cross_entropy_rule,
}

_RESAMPLING: Mapping[str, RuleOrChoice] = {
    "Resize": resize.resize_rule,
    "GridSample": grid.grid_sample_rule,
    "AffineGrid": _custom(grid.affine_grid_gradient, 0),
}

_RECURRENT: Mapping[str, RuleOrChoice] = dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent.recurrent_rule)

_ALGEBRA: Mapping[str, RuleOrChoice] = {
    "Det": determinant.det_rule,
    "DFT": spectral.dft_rule,
    "STFT": spectral.stft_rule,
}

_FAMILIES: tuple[Mapping[str, RuleOrChoice], ...] = (
    _ORT,
    refusals.STOPPED,
    refusals.REFUSED,
    _OURS,
    _ARITHMETIC,
    _INDEXING,
    _REDUCTIONS,
    _NORMALIZATIONS,
    _CONVOLUTION_AND_POOLING,
    _LOSSES,
    _LAYOUT,
    _RESAMPLING,
    _RECURRENT,
    _ALGEBRA,
)
TABLE: dict[tuple[str, str], RuleOrChoice] = {("", name): rule for family in _FAMILIES for name, rule in family.items()}

_registered: dict[tuple[str, str], Registered] = {}


def register(
    op_type: str,
    domain: str,
    gradient: ir.Function,
    *,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    helpers: tuple[ir.Function, ...] = (),
    steering: tuple[int, ...] = (),
) -> None:
    """Gives the model-local function `domain::op_type` a gradient, which is one call of the function `gradient`.

    Args:
        op_type: name of the function.
        domain: its domain.
        gradient: the gradient function; it is added to a model that is differentiated.
        inputs: what it is called with: `GO(i)` gradient of output i, `I(i)` input i, `O(i)` output i.
        outputs: what it returns: `GI(i)`, the gradient of input i.
        helpers: further model-local functions that `gradient` calls.
        steering: indices of float inputs that only steer.
    """
    _registered[domain, op_type] = Registered(gradient, inputs, outputs, helpers, frozenset(steering))


def is_registered(identifier: tuple[str, str]) -> bool:
    """Says whether the function (domain, name) has a registered gradient."""
    return identifier in _registered


def rule_for(node: ir.Node) -> Rule:
    """Returns how `node` is differentiated, or why it is not."""
    key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
    if key in _registered:
        return _registered[key]
    rule = TABLE.get(key)
    if rule is None:
        return Refused("no gradient is known for this operator")
    return rule(node) if callable(rule) else rule
