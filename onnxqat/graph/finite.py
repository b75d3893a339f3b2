"""Refuses weights that are NaN or infinite, by name: everything behind them would be NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import MOVEMENT
from onnxqat.graph.naming import label

#: Operators all of whose constant inputs are parameters of a layer. Elsewhere infinity may be meant: it masks and fills.
LAYERS = frozenset(
    {
        *("BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "GroupNormalization"),
        *("InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu", "RMSNormalization", "RNN"),
    }
)
#: Operators for which a NaN is always a mistake.
_ARITHMETIC = LAYERS | {"Add", "Div", "Mul", "Sub"}
#: Operators that leave the numbers of a weight as they are.
_MOVING = {*MOVEMENT, "Cast", "Identity"}


def check_finite_weights(model: ir.Model) -> None:
    """Refuses NaN in constants that layers or arithmetic read, and infinity in those of layers.

    Raises:
        InputError: names the initializer and the node that reads it.
    """
    for node in model.graph.all_nodes():
        for value in node.inputs if node.op_type in _ARITHMETIC else ():
            source = _source(value)
            array = None if source is None else constant(source)
            if source is None or array is None or not _is_float(array):
                continue
            numbers = np.isfinite(array) if node.op_type in LAYERS else ~np.isnan(array)
            if not numbers.all():
                raise InputError(
                    f"initializer {source.name!r} of {label(node)}: holds NaN or infinity; repair the float model"
                )


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or "float" in array.dtype.name  # those that NumPy itself does not have


def _source(value: ir.Value | None) -> ir.Value | None:
    """The value itself, or the one that it is moved or cast from."""
    while value is not None and constant(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _MOVING:
            return None
        value = producer.inputs[0]
    return value
