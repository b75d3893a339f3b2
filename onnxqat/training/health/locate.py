"""Finds the node at which numbers that are not finite arise first, in the forward or the backward pass of a step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.naming import label
from onnxqat.graph.ops import FLOAT_TYPES
from onnxqat.training.running.program import Program
from onnxqat.training.running.values import as_value
from onnxqat.training.training_graph.losses import LOSS

_GRADIENT = re.compile(r"(.+?)_grad(_\d+)?")
_FINITE, _LARGEST = "/is_finite", "/largest"


@dataclass(frozen=True)
class Place:
    """Place where the first such number arises.

    Attributes:
        node: the node of the Q/DQ model; None for the loss.
        value: its output or, in the backward pass, the input whose gradient is concerned.
        backward: whether it is in the backward pass.
        largest: the largest absolute number among what goes in.
    """

    node: ir.Node | None
    value: str
    backward: bool
    largest: float

    def __str__(self) -> str:
        if self.node is None:
            return f"the gradient of output {self.value!r}" if self.backward else "the loss"
        if self.node.op_type == "QuantizeLinear":
            return f"the {'gradient of the ' if self.backward else ''}quantizer of {self.value!r}"
        through = f"the gradient of {self.value!r} through" if self.backward else f"{self.value!r}, the result of"
        return f"{through} {label(self.node)},"


def first_not_finite(training: ir.Model, qdq: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> Place | None:
    """The place, for the inputs and parameters of a step whose loss or gradients were not finite; None where all are.

    The way goes back from a result that is not finite through what is not finite, to a node whose inputs all are.
    """
    bad, largest = _measured(training, arrays)
    results = [value for value in training.graph.outputs if value.name in bad]
    if not results:
        return None
    order = {node: number for number, node in enumerate(training.graph)}
    results.sort(key=lambda value: value.name != LOSS)
    path = [results[0]]
    while True:
        node = path[-1].producer()
        assert node is not None
        causes = [value for value in node.inputs if value is not None and value.name in bad]
        if not causes:
            break
        path.append(min(causes, key=lambda value: order[value.producer()]))  # type: ignore[index]
    inputs = [largest.get(str(value.name), 0.0) for value in node.inputs if value is not None]
    return _place(path[::-1], qdq, max(inputs, default=0.0))


def _place(path: Sequence[ir.Value], qdq: ir.Model, largest: float) -> Place:
    """The model's node for the first value on a path from the origin to a result that has a name in the model."""
    own = {str(value.name): value for node in qdq.graph for value in node.outputs}
    values = {**own, **qdq.graph.initializers, **{str(value.name): value for value in qdq.graph.inputs}}
    read: set[str] = set()
    for value in path:
        name, node = str(value.name), value.producer()
        read |= {_base(str(other.name)) for other in (node.inputs if node is not None else ()) if other is not None}
        if name in own:
            return Place(own[name].producer(), name, backward=False, largest=largest)
        if _base(name) != name and _base(name) in values:
            users = [use.node for use in values[_base(name)].uses()]
            chosen = next((user for user in users if read & {str(o.name) for o in user.outputs}), None)
            return Place(chosen or next(iter(users), None), _base(name), backward=True, largest=largest)
    return Place(None, LOSS, backward=False, largest=largest)


def _base(name: str) -> str:
    match = _GRADIENT.fullmatch(name)
    return match[1] if match else name


def _measured(training: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> tuple[set[str], dict[str, float]]:
    """Names of the computed values that hold a number that is not finite, and the largest absolute number of each value."""
    feeds = {name: as_value(array) for name, array in arrays.items()}
    types = Program(_with_outputs(training)).outputs
    floats = [name for name, dtype in types.items() if dtype in FLOAT_TYPES]
    found = {name: float(value.numpy()) for name, value in Program(_with_measures(training, floats))(feeds).items()}
    bad = {name for name in floats if found[f"{name}{_FINITE}"] != 0}
    largest = {name: _magnitude(array) for name, array in arrays.items()}
    return bad, largest | {name: found[f"{name}{_LARGEST}"] for name in floats}


def _magnitude(array: NDArray[Any]) -> float:
    return float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0


def _with_outputs(training: ir.Model) -> ir.Model:
    model = training.clone()
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs if value.name]
    return model


def _with_measures(training: ir.Model, names: Sequence[str]) -> ir.Model:
    """The graph with two numbers for each value: Σ (x − x), which is 0 where all are finite, and the largest absolute one."""
    model = training.clone()
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    outputs = []
    for name in names:
        zero = ir.node("Sub", [values[name], values[name]])
        size = ir.node("Abs", [values[name]])
        for inner, kind, suffix in ((zero, "ReduceSum", _FINITE), (size, "ReduceMax", _LARGEST)):
            outer = ir.node(kind, inner.outputs, {"keepdims": 0})
            outer.outputs[0].name = f"{name}{suffix}"
            inner.outputs[0].name = f"{name}{suffix}/each"
            graph.extend([inner, outer])
            outputs.append(outer.outputs[0])
    graph.outputs[:] = outputs
    return model
