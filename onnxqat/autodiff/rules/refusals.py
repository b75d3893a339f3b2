"""Operators of ONNX up to opset 21 that have no gradient, and why.

Two kinds: no gradient flows through the first, since it is zero, or since they only control what is computed. The second have a
gradient that is not available here: training is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxqat.autodiff.rule import Refused, RuleOrChoice, Stopped

_STEERS = Stopped("its result only steers (a shape, an index or a condition)")
_STEP = Stopped("piecewise constant: its gradient is zero")
_RANDOM = Stopped("random: a draw has no gradient")
_CONSTANT = Stopped("constant: it depends on no parameter")
_TEXT = Stopped("works on text or encoded bytes, which have no gradient")

_STEERING_NAMES = """
    And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor ConstantOfShape Equal EyeLike Greater
    GreaterOrEqual IsInf IsNaN Less LessOrEqual NonMaxSuppression NonZero Not OptionalHasElement Or SequenceLength Shape Size Xor
"""
_STEP_NAMES = "Ceil Floor Hardmax Round Sign"
_RANDOM_NAMES = "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
_CONSTANT_NAMES = "BlackmanWindow Constant HammingWindow HannWindow MelWeightMatrix SequenceEmpty"
_TEXT_NAMES = "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer"

STOPPED: Mapping[str, Stopped] = {
    **dict.fromkeys(_STEERING_NAMES.split(), _STEERS),
    **dict.fromkeys(_STEP_NAMES.split(), _STEP),
    **dict.fromkeys(_RANDOM_NAMES.split(), _RANDOM),
    **dict.fromkeys(_CONSTANT_NAMES.split(), _CONSTANT),
    **dict.fromkeys(_TEXT_NAMES.split(), _TEXT),
}

_SEQUENCES = Refused("sequences and optionals are not tensors; export the model without them")
_QUANTIZED = Refused(
    "it computes with integer codes outside the quantizers that `insert` writes; "
    "start from the float model, or put QuantizeLinear and DequantizeLinear of constant scale around the float operator",
    codes=True,
)
_LOOP = Refused("loops are not differentiated; export with the loop unrolled, or as LSTM, GRU or RNN")
_OLD = Refused("it is only part of operator sets before 11; convert the model to opset 17")

_SEQUENCE_NAMES = """
    ConcatFromSequence Optional OptionalGetElement SequenceAt SequenceConstruct SequenceErase SequenceInsert SequenceMap
    SplitToSequence
"""
_QUANTIZED_NAMES = """
    ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear
"""

REFUSED: Mapping[str, Refused] = {
    **dict.fromkeys(_SEQUENCE_NAMES.split(), _SEQUENCES),
    **dict.fromkeys(_QUANTIZED_NAMES.split(), _QUANTIZED),
    "If": Refused(
        "its condition depends on data; export the model with the branch taken, or fix the input that decides it (--fix-input)"
    ),
    "Loop": _LOOP,
    "Scan": _LOOP,
    "Scatter": _OLD,
    "Upsample": _OLD,
    "Unique": Refused("which elements are equal decides how many outputs there are"),
    "DeformConv": Refused("ONNX Runtime 1.19 cannot run it"),
    "MaxRoiPool": Refused(
        "ONNX Runtime 1.19 keeps no record of which elements were largest; let training end before it"
    ),
    "RoiAlign": Refused("its gradient is not implemented; let training end before it"),
}

RULES: Mapping[str, RuleOrChoice] = {**STOPPED, **REFUSED}
