"""The table that joins each operator to its gradient rule."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.train.gradients import (
    activations,
    determinant,
    einsum,
    elementwise,
    grid,
    layout,
    recurrent,
    refusals,
    resize,
    spectral,
)
from onnxqat.train.gradients.rule import Custom, Expanded, Refused, Registered, Rule, RuleOrChoice, Trusted

_FIRST = frozenset({0})


def _trusted(*inputs: int, steering: tuple[int, ...] = ()) -> Trusted:
    return Trusted(frozenset(inputs) if inputs else None, frozenset(steering))


def _custom(gradient: object, *inputs: int) -> Custom:
    return Custom(gradient, frozenset(inputs) if inputs else None)  # type: ignore[arg-type]


_NAMES_TRUSTED = """
    Abs Add AveragePool Cast Concat Conv Cos Div Erf Exp Expand Flatten Gather GatherElements GatherND Gemm
    GlobalAveragePool Identity LayerNormalization LeakyRelu Log LogSoftmax MatMul Max MaxPool Min Mul Neg Pad Pow
    Reciprocal ReduceL2 ReduceLogSumExp ReduceMean ReduceSum Relu Reshape ScatterElements ScatterND Sigmoid Sin Slice
    Softmax SoftmaxCrossEntropyLoss Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Where
"""
_ORT: Mapping[str, RuleOrChoice] = {
    **dict.fromkeys(_NAMES_TRUSTED.split(), _trusted()),
    "Clip": _trusted(0),
    "Dropout": _trusted(0, steering=(1,)),
}
_OURS: Mapping[str, RuleOrChoice] = {
    "HardSwish": _custom(activations.hard_swish_gradient),
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
    "Mod": _custom(elementwise.mod_gradient, 0, 1),
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
) -> None:
    """Gives the model-local function `domain::op_type` a gradient, which is one call of the function `gradient`.

    Args:
        op_type: name of the function.
        domain: its domain.
        gradient: the gradient function; it is added to a model that is differentiated.
        inputs: what it is called with: `GO(i)` gradient of output i, `I(i)` input i, `O(i)` output i.
        outputs: what it returns: `GI(i)`, the gradient of input i.
        helpers: further model-local functions that `gradient` calls.
    """
    _registered[domain, op_type] = Registered(gradient, tuple(inputs), tuple(outputs), tuple(helpers))


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
