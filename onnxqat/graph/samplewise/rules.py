"""The table of operators: what each makes of arrays of samples. What is not in it keeps a batch in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxqat.graph.constants import constant
from onnxqat.graph.equation import parse
from onnxqat.graph.samplewise.kinds import Call, Count, Coupled, Kind, Mean, Rows, Same, Total
from onnxqat.graph.samplewise.movement import MOVEMENT

_ACROSS = "computes across the samples of a batch"


def _each(call: Call) -> Kind:
    """Element by element; the other inputs are the same for all."""
    call.only(0)
    return call.first


def _together(call: Call) -> Kind:
    """Element by element of several arrays that are broadcast."""
    samples = [index for index, kind in enumerate(call.kinds) if isinstance(kind, Rows)]
    given = [index for index, kind in enumerate(call.kinds) if kind is not None]
    call.only(*samples)
    if len(given) == 1:
        return call.rows(samples[0])
    rank = max(call.rank(index) for index in given)
    found = {Rows(call.rows(i).axis + rank - call.rank(i), call.rows(i).each) for i in samples}
    if len({one.axis for one in found}) != 1:
        raise Coupled("reads samples along two different axes")
    sizes = {one.each for one in found}
    result = Rows(found.pop().axis, sizes.pop() if len(sizes) == 1 else None)
    for index in set(given) - set(samples):
        axis = result.axis - rank + call.rank(index)
        if axis >= 0 and call.shape(index)[axis] != 1:
            raise Coupled("joins samples with an array that may differ from one to the next")
    return result


def _quantizer(call: Call) -> Kind:
    """QuantizeLinear and DequantizeLinear; scales along the samples' axis would be of a fixed batch."""
    scale = call.shape(1)
    if scale not in ([], [1]) and (len(scale) > 1 or call.axis("axis", 1) == call.first.axis):
        raise Coupled("has a scale for each sample")
    return _each(call)


def _dropout(call: Call) -> Kind:
    if call.has(2) and constant(call.node.inputs[2]) != np.array(False):
        raise Coupled("draws random numbers")
    return _each(call)


def _leading(call: Call) -> Kind:
    """Operators whose first axis is the batch by definition."""
    call.only(0)
    if call.first.axis:
        raise Coupled(_ACROSS)
    return call.first


def _max_pool(call: Call) -> Kind:
    indices = call.node.outputs[1:]
    if any(value.uses() or (value.is_graph_output() and value.name not in call.local) for value in indices):
        raise Coupled("gives indices that count across the samples of a batch")
    return _leading(call)


def _batch_normalization(call: Call) -> Kind:
    if call.integer("training_mode", 0):
        raise Coupled("normalizes by statistics of the batch")
    return _leading(call)


def _mean_variance(call: Call) -> Kind:
    axes = call.node.attributes.get_ints("axes", (0, 2, 3))
    if call.first.axis in [axis % call.rank(0) for axis in axes or ()]:
        raise Coupled("normalizes by statistics of the batch")
    return call.first


def _grid_sample(call: Call) -> Kind:
    call.only(0, 1)
    if call.first.axis or call.rows(1).axis:
        raise Coupled(_ACROSS)
    return call.first


def _resize(call: Call) -> Kind:
    call.only(0, 3)
    axes = call.node.attributes.get_ints("axes", None)
    if call.first.axis or (axes is not None and 0 in [axis % call.rank(0) for axis in axes]):
        raise Coupled(_ACROSS)
    if axes is None and call.has(3) and call.sizes(3)[0] != Count(call.first.each):
        raise Coupled("resizes the batch")
    if axes is None and not call.has(3):
        scales = constant(call.node.inputs[2]) if call.has(2) else None
        if scales is None or not scales.size or scales.reshape(-1)[0] != 1:
            raise Coupled("resizes the batch")
    return call.first


def _along(call: Call) -> Kind:
    """Operators along one axis."""
    call.only(0)
    if call.opset < 13 and call.node.op_type in ("Hardmax", "LogSoftmax", "Softmax"):
        raise Coupled("is of an opset in which it joins axes")
    default = 0 if call.node.op_type in ("ArgMax", "ArgMin") else -1
    axis = call.axis("axis", default)
    if axis == call.first.axis:
        raise Coupled(_ACROSS)
    if call.node.op_type in ("ArgMax", "ArgMin") and not call.integer("keepdims", 1):
        return Rows(call.first.axis - (axis < call.first.axis), call.first.each)
    return call.first


def _behind(call: Call) -> Kind:
    """Operators over an axis and all behind it."""
    call.only(0)
    if call.first.axis >= call.axis("axis", -1):
        raise Coupled(_ACROSS)
    return call.first


def _cumulative(call: Call) -> Kind:
    call.only(0)
    axes = call.integers("axis", 1)
    if axes is None or axes[0] % call.rank(0) == call.first.axis:
        raise Coupled(_ACROSS)
    return call.first


def _triangle(call: Call) -> Kind:
    call.only(0)
    if call.first.axis >= call.rank(0) - 2:
        raise Coupled(_ACROSS)
    return call.first


def _reduce(call: Call) -> Kind:
    """Over other axes, samples stay; over theirs, what is a mean or a sum."""
    call.only(0)
    axes = call.axes(1)
    if not axes and call.integer("noop_with_empty_axes", 0):
        return call.first
    rows, output = call.first, call.node.outputs[0]
    if not axes or rows.axis in axes:
        if call.node.op_type == "ReduceMean":
            return Mean()
        if call.node.op_type in ("ReduceSum", "ReduceL1", "ReduceSumSquare"):
            return Total(output)
        raise Coupled(_ACROSS)
    if call.integer("keepdims", 1):
        return rows
    return Rows(rows.axis - sum(axis < rows.axis for axis in axes), rows.each)


def _gemm(call: Call) -> Kind:
    call.only(0, 2)
    if call.first.axis or call.integer("transA", 0):
        raise Coupled(_ACROSS)
    if call.has(2):
        added = call.kinds[2]
        if isinstance(added, Same) and call.rank(2) == 2 and call.shape(2)[0] != 1:
            raise Coupled("joins samples with an array that may differ from one to the next")
        if isinstance(added, Rows) and (added.axis or call.rank(2) != 2):
            raise Coupled("reads samples along two different axes")
    return call.first


def _matmul(call: Call) -> Kind:
    """Rows of the left operand, columns of the right one, or batches of both."""
    call.only(0, 1)
    ranks = call.rank(0), call.rank(1)
    if min(ranks) < 2:
        raise Coupled("multiplies by a vector")
    rank = max(ranks)
    found = {(i, call.rows(i).axis + rank - ranks[i]) for i in (0, 1) if isinstance(call.kinds[i], Rows)}
    if (0, rank - 1) in found or (1, rank - 2) in found:
        raise Coupled("adds up over the samples of a batch")
    axes = {axis for _, axis in found}
    axis = min(axes)
    if len(axes) != 1 or (len(found) == 2 and axis >= rank - 2):
        raise Coupled("reads samples along two different axes")
    if len(found) == 1 and axis < rank - 2:
        other = 1 - next(iter(found))[0]
        place = axis - rank + ranks[other]
        if place >= 0 and call.shape(other)[place] != 1:
            raise Coupled("joins samples with an array that may differ from one to the next")
    return Rows(axis, call.rows(next(iter(found))[0]).each)


def _einsum(call: Call) -> Kind:
    equation = call.node.attributes.get_string("equation", "") or ""
    terms = parse(equation, [call.rank(index) for index in range(len(call.kinds))])
    letters = {terms.terms[i][kind.axis] for i, kind in enumerate(call.kinds) if isinstance(kind, Rows)}
    shared = "".join(term for term, kind in zip(terms.terms, call.kinds, strict=True) if isinstance(kind, Same))
    if len(letters) != 1 or letters & {*shared, *terms.broadcast}:
        raise Coupled("reads samples along two different axes")
    letter = letters.pop()
    if any(term.count(letter) > 1 for term in terms.terms):
        raise Coupled(_ACROSS)
    if letter not in terms.output:
        raise Coupled("adds up over the samples of a batch")
    return Rows(terms.output.index(letter), None)


def _recurrent(call: Call) -> list[Kind]:
    """LSTM, GRU and RNN: samples along axis 1 of the sequence and of the states."""
    if call.integer("layout", 0) or call.first != Rows(1):
        raise Coupled(_ACROSS)
    call.only(0, 4, 5, 6)
    for index, axis in ((4, 0), (5, 1), (6, 1)):
        if call.has(index) and call.kinds[index] != Rows(axis):
            raise Coupled("reads a state or a length of a fixed batch")
    found: list[Kind] = [Rows(2), Rows(1), Rows(1)]
    return found[: len(call.node.outputs)]


def _class_loss(call: Call) -> list[Kind]:
    """SoftmaxCrossEntropyLoss and NegativeLogLikelihoodLoss."""
    call.only(0, 1)
    if call.first.axis or call.rows(1).axis:
        raise Coupled(_ACROSS)
    how = call.node.attributes.get_string("reduction", "mean")
    weighted = call.has(2) or "ignore_index" in call.node.attributes
    kinds: dict[str, Kind] = {"none": call.first, "sum": Total(call.node.outputs[0])}
    loss = kinds.get(str(how), Mean(call.node if weighted else None))
    return [loss, call.first][: len(call.node.outputs)]


_ONE = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Tan Tanh ThresholdedRelu"
)
_SEVERAL = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
    "Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
_IMAGES = (
    "AveragePool Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool "
    "GroupNormalization InstanceNormalization LRN LpPool SpaceToDepth"
)
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"

#: ONNX Runtime's convolutions and pools on channels in blocks.
BLOCKED_RULES: Mapping[str, Callable[[Call], Kind | list[Kind]]] = dict.fromkeys(
    ["AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput"], _leading
)

#: By operator, where something that is read is made of samples.
RULES: Mapping[str, Callable[[Call], Kind | list[Kind]]] = {
    **dict.fromkeys(_ONE.split(), _each),
    **dict.fromkeys(_SEVERAL.split(), _together),
    **dict.fromkeys(_IMAGES.split(), _leading),
    **dict.fromkeys([f"Reduce{kind}" for kind in _REDUCTIONS.split()], _reduce),
    **dict.fromkeys(["ArgMax", "ArgMin", "Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"], _along),
    **dict.fromkeys(["GRU", "LSTM", "RNN"], _recurrent),
    **dict.fromkeys(["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"], _class_loss),
    **dict.fromkeys(["DequantizeLinear", "QuantizeLinear"], _quantizer),
    **MOVEMENT,
    "BatchNormalization": _batch_normalization,
    "CumSum": _cumulative,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "LayerNormalization": _behind,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "MeanVarianceNormalization": _mean_variance,
    "Resize": _resize,
    "Trilu": _triangle,
}
