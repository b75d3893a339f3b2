"""Zero points that are trained (LSQ+, Bhalgat et al. 2020): a float beside each, whose rounding is the integer of the model.

Such a float is an initializer of the Q/DQ model that is trained, and of no other: models that leave training have the integer.
A zero point at the lowest code stays as it is, for it may stand for a Relu; so does 0 of signed codes, which is all that some
targets take, and that of a range that is the target's own. Others stay above the lowest code.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxqat.graph.qdq import FIXED_GRID, Quantizer, quantizers
from onnxqat.graph.qdq_checks import required

_SUFFIX = "_trained"
#: Codes of more bits are so fine that rounding a zero point costs nothing.
WIDEST = 8


def add_floats(qdq: ir.Model) -> int:
    """Puts a float beside each zero point that can be trained, in place; returns how many quantizers have one."""
    found = quantizers(qdq)
    fixed = {_name(quantizer) for quantizer in found if not _can_learn(quantizer)}
    for quantizer in found:
        name = _name(quantizer)
        if name not in fixed and float_of(qdq.graph, quantizer) is None:
            tensor = ir.tensor(quantizer.zero_points.astype(np.float32), name=name)
            qdq.graph.register_initializer(ir.val(name, const_value=tensor))
    return sum(1 for _ in _with_floats(qdq))


def round_floats(qdq: ir.Model) -> None:
    """Gives the model the integers of its floats, which go, in place."""
    for name, (quantizer, value) in dict(_with_floats(qdq)).items():
        zero_point = quantizer.zero_point
        assert zero_point is not None
        shape = required(zero_point).shape
        codes = np.clip(np.rint(required(value)), *bounds(quantizer)).reshape(shape).astype(quantizer.dtype.numpy())
        zero_point.const_value = ir.tensor(codes, dtype=quantizer.dtype, name=zero_point.name)
        del qdq.graph.initializers[name]


def float_of(graph: ir.Graph, quantizer: Quantizer) -> ir.Value | None:
    """The float of a quantizer's zero point; None where it is not trained."""
    return graph.initializers.get(_name(quantizer))


def bounds(quantizer: Quantizer) -> tuple[int, int]:
    """The lowest and the highest number that training gives a zero point."""
    return quantizer.qmin + 1, quantizer.qmax


def _with_floats(qdq: ir.Model) -> Iterator[tuple[str, tuple[Quantizer, ir.Value]]]:
    for quantizer in quantizers(qdq):
        value = float_of(qdq.graph, quantizer)
        if value is not None:
            yield str(value.name), (quantizer, value)


def _name(quantizer: Quantizer) -> str:
    return "" if quantizer.zero_point is None else f"{quantizer.zero_point.name}{_SUFFIX}"


def _can_learn(quantizer: Quantizer) -> bool:
    is_scalar = quantizer.zero_point is not None and quantizer.axis is None and not quantizer.is_float8
    if not is_scalar or quantizer.quantize is None or quantizer.is_weight or quantizer.bits > WIDEST:
        return False
    zero_point, own = int(quantizer.zero_points), FIXED_GRID in quantizer.dequantize.metadata_props
    return not own and zero_point > quantizer.qmin and not (quantizer.is_signed and zero_point == 0)
