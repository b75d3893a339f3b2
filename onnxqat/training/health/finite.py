"""Detects numbers that are not finite, and writes the messages about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import OnnxqatError
from onnxqat.training.health.locate import Place, first_not_finite
from onnxqat.training.running.engine import Engine
from onnxqat.training.running.values import Floats
from onnxqat.training.training_graph.loss_inputs import LABEL

#: Operators that are not defined everywhere, or whose slope has no bound.
_EDGES = frozenset({"Acos", "Acosh", "Asin", "Atanh", "Div", "Log", "Mod", "Pow", "Reciprocal", "ReduceLogSum", "Sqrt"})
#: Numbers whose square float32 can just about hold.
_LARGE = 1e18


def norm_of(array: Floats) -> float:
    """Euclidean norm; infinity or NaN where a number is, or where the squares overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.dot(array, array)))


def not_finite(engine: Engine, qdq: ir.Model, feeds: Mapping[str, NDArray[Any]], *, begun: bool) -> str:
    """Returns where the numbers of a step that are not finite arise, and a remedy that fits.

    Args:
        engine: what ran the step.
        qdq: the model whose nodes are named.
        feeds: what the step was fed.
        begun: whether training has changed the parameters.
    """
    try:
        place = first_not_finite(engine.training, qdq, {**engine.layout.named(engine.parameters), **feeds})
    except OnnxqatError:  # ONNX Runtime may not have the memory for a second graph
        place = None
    where = "the norm of the gradient" if place is None else str(place)
    remedy = _remedy(place, feeds, begun=begun)
    return f"{where} is not finite (loss {engine.loss:.4g}); {remedy} (the parameters are those before this step)"


def _remedy(place: Place | None, feeds: Mapping[str, NDArray[Any]], *, begun: bool) -> str:
    if place is not None and place.node is not None and place.node.op_type in _EDGES and place.largest < _LARGE:
        return (
            f"{place.node.op_type} is not defined at what it is given, often an exact zero: bound it by a Clip or add a small "
            "number in the model, or leave what is upstream of it in float (`ignore`)"
        )
    for name, array in feeds.items():
        if array.dtype.kind == "f" and np.abs(array).max(initial=0) > _LARGE:
            return f"{name.removeprefix(LABEL)!r} holds numbers beyond {_LARGE:g}: check data and labels"
    if begun:
        return "lower the learning rate, clip gradients, or check data and labels"
    return "no step has changed the model yet: check its weights, data and labels"
