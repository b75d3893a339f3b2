"""Bounds on values as one Clip or Relu, however an exporter wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, replace_value, sole_user
from onnxqat.insertion.groups import inputs, is_float
from onnxqat.insertion.preparation.simplify import given, put_in_place


def bound_activations(graph: ir.Graph) -> None:
    """Min and Max by scalars become Clip, two beside each other (a Relu may be one) a single Clip, and Max(x, 0) Relu.

    Exporters write ReLU6 and hardtanh so; a Clip needs no kernel of its own in front of a quantizer.
    """
    for node in list(graph):
        outer = _bound(node)
        if outer is None:
            continue
        above = outer.data.producer()
        inner = _bound(above) if above is not None and sole_user(outer.data) is node else None
        if inner is None or above is None or (outer.low is None) == (inner.low is None):
            _write_alone(graph, node, outer)
            continue
        low, high = (outer.low, inner.high) if inner.low is None else (inner.low, outer.high)
        assert low is not None
        assert high is not None
        if low > high:
            continue
        clip = ir.node("Clip", [inner.data, *_limits(graph, node, low, high)], name=above.name)
        put_in_place(graph, node, clip, above.op_type)
        graph.remove(above, safe=True)


def _write_alone(graph: ir.Graph, node: ir.Node, bound: _Bound) -> None:
    """Min and Max without a partner; one that bounds nothing passes its data on, since TensorRT refuses it as a Clip."""
    if node.op_type not in ("Min", "Max"):
        return
    if bound.low == -np.inf or bound.high == np.inf:
        replace_value(graph, node.outputs[0], bound.data)
        graph.remove(node, safe=True)
    elif bound.low == 0.0:
        put_in_place(graph, node, ir.node("Relu", [bound.data], name=node.name))
    else:
        limits = _limits(graph, node, bound.low, bound.high)
        put_in_place(graph, node, ir.node("Clip", [bound.data, *limits], name=node.name))


def _limits(graph: ir.Graph, node: ir.Node, low: float | None, high: float | None) -> list[ir.Value | None]:
    """The bounds as inputs of a Clip; None for one that is open."""
    return [
        None if limit is None else constant_value(graph, f"{node.name}_{kind}", np.asarray(limit, np.float32))
        for kind, limit in (("low", low), ("high", high))
    ]


@dataclass(frozen=True)
class _Bound:
    """max(data, low) or min(data, high)."""

    data: ir.Value
    low: float | None = None
    high: float | None = None


def _bound(node: ir.Node) -> _Bound | None:
    """Returns the bound that a Relu, or a Min, Max or one-sided Clip by a scalar, sets; None for any other node."""
    data = node.inputs[0] if node.inputs else None
    if data is None or not is_float(node.outputs[0]):
        return None
    if node.op_type == "Relu":
        return _Bound(data, low=0.0)
    if node.op_type == "Clip":
        low, high = (constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
        unbounded = not given(node, 1) if low is None else low <= np.finfo(np.float32).min
        return _Bound(data, high=float(high.item())) if unbounded and high is not None else None
    if node.op_type not in ("Min", "Max"):
        return None
    fixed = [array for v in inputs(node) if (array := constant(v)) is not None]
    free = [v for v in inputs(node) if constant(v) is None]
    if len(fixed) != 1 or len(free) != 1 or fixed[0].size != 1 or not _keeps_rank(free[0], fixed[0]):
        return None
    scalar = float(fixed[0].item())
    return _Bound(free[0], low=scalar) if node.op_type == "Max" else _Bound(free[0], high=scalar)


def _keeps_rank(data: ir.Value, scalar: NDArray[Any]) -> bool:
    return scalar.ndim == 0 or (data.shape is not None and scalar.ndim <= data.shape.rank())
