"""Small edits of a graph that several stages need."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant_value(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """An initializer that holds `array`, under `name` or, where that is taken by other content, the next free one."""
    candidate, number = name, 0
    while candidate in graph.initializers:
        existing = graph.initializers[candidate]
        held = None if existing.const_value is None else existing.const_value.numpy()
        if (
            held is not None
            and held.dtype == array.dtype
            and held.shape == array.shape
            and held.ndim == 0
            and held == array
        ):
            return existing
        number += 1
        candidate = f"{name}_{number}"
    value = ir.val(candidate, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=candidate))
    graph.register_initializer(value)
    return value


def fresh_name(graph: ir.Graph, name: str) -> str:
    """A node name that the graph does not use yet: `name` itself where it is free."""
    taken: set[str] = graph.meta.setdefault("onnxqat.node_names", set())
    if not taken:
        taken.update(str(node.name) for node in graph)
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
