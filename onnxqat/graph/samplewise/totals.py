"""Operators under which a sum over samples stays a sum, and a mean a mean: those at the end of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxqat.graph.ops import FLOAT_TYPES
from onnxqat.graph.samplewise.kinds import Call, Count, Coupled, Kind, Mean, Same, Sizes, Total

_NEITHER = "makes of a mean or a sum over samples what is neither"


def _linear(call: Call) -> Kind:
    """A linear operator on its first input."""
    call.only(0)
    kind = call.kinds[0]
    assert kind is not None
    return _of(call, kind)


def _of(call: Call, kind: Kind) -> Kind:
    return Total(call.node.outputs[0]) if isinstance(kind, Total) else kind


def _cast(call: Call) -> Kind:
    if ir.DataType(call.integer("to", 0)) not in FLOAT_TYPES:
        raise Coupled(_NEITHER)
    return _linear(call)


def _mul(call: Call) -> Kind:
    varying = [kind for kind in call.kinds if kind is not None and not isinstance(kind, Same)]
    if len(varying) != 1:
        raise Coupled(_NEITHER)
    return _of(call, varying[0])


def _div(call: Call) -> Kind:
    above, below = call.kinds[:2]
    if isinstance(below, Same) and isinstance(above, Total | Mean):
        return _of(call, above)
    if isinstance(above, Total) and isinstance(below, Sizes) and all(isinstance(one, Count) for one in below.entries):
        return Mean()
    if isinstance(above, Total) and isinstance(below, Total):
        return Mean(below.value)
    raise Coupled(_NEITHER)


def _add(call: Call) -> Kind:
    """Sums of sums, and of means with equal weights; what is the same for all may be added to a mean."""
    kinds = [kind for kind in call.kinds if kind is not None]
    if all(isinstance(kind, Total) for kind in kinds):
        return Total(call.node.outputs[0])
    means = {kind for kind in kinds if isinstance(kind, Mean)}
    if len(means) == 1 and all(isinstance(kind, Mean | Same) for kind in kinds):
        return means.pop()
    raise Coupled("adds terms of the loss that weigh samples differently")


#: By operator, where something that is read is a sum or a mean over samples.
TOTALS: Mapping[str, Callable[[Call], Kind | list[Kind]]] = {
    "Add": _add,
    "Cast": _cast,
    "Div": _div,
    "Flatten": _linear,
    "Identity": _linear,
    "Mul": _mul,
    "Neg": _linear,
    "ReduceMean": _linear,
    "ReduceSum": _linear,
    "Reshape": _linear,
    "Squeeze": _linear,
    "Sub": _add,
    "Sum": _add,
    "Unsqueeze": _linear,
}
