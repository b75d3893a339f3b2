"""Fill values: constants that padding and masks put in the place of data; no range includes them.

In front of a maximum they are lower than all data and lost behind it (padding of MaxPool, masks of ReduceMax), so the quantizer
belongs behind the maximum. What remains of a fill elsewhere is known by its size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import SMALLEST_FILL
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import MOVEMENT
from onnxqat.insertion.groups import inputs

#: Operators that put constants beside data, and at which inputs.
_PLACES: dict[str, slice] = {
    "Where": slice(1, 3),
    "Pad": slice(0, 3, 2),
    "ScatterElements": slice(0, 3, 2),
    "ScatterND": slice(0, 3, 2),
    "Concat": slice(None),
}


def is_filled(value: ir.Value) -> bool:
    """Whether the value holds data with constants put beside or added to it, which no integer kernel does."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type in ("Where", "Pad", "ScatterElements", "ScatterND"):
        return True
    return node.op_type in ("Concat", "Add", "Sub") and any(constant(one) is not None for one in inputs(node))


def without_fills(value: ir.Value, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the values with zeros in the place of fill values: every range holds 0 anyway."""
    fills = np.array(list(_fills(value, set())), np.float32)
    return np.where(np.isin(array, fills), np.float32(0), array) if fills.size else array


def _fills(value: ir.Value, seen: set[ir.Value]) -> Iterator[float]:
    """The large constants that reach the value through nothing but data movement."""
    if value in seen:
        return
    seen.add(value)
    node, array = value.producer(), constant(value)
    if array is None and node is not None and node.op_type == "ConstantOfShape" and "value" in node.attributes:
        array = node.attributes["value"].as_tensor().numpy()
    if array is not None:
        if np.issubdtype(array.dtype, np.floating):
            yield from map(float, np.unique(array[np.abs(array) >= SMALLEST_FILL]))
    elif node is not None and (node.op_type in _PLACES or node.op_type in MOVEMENT):
        for one in node.inputs[_PLACES.get(node.op_type, slice(0, 1))]:
            if one is not None:
                yield from _fills(one, seen)
