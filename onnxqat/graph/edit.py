"""Small edits of a graph that several stages need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_NODES, _VALUES = "onnxqat.node_names", "onnxqat.value_names"


def constant_value(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer that holds `array`, under `name` or, where that is taken, the next free one."""
    free = fresh_value_name(graph, name)
    value = ir.val(free, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=free))
    graph.register_initializer(value)
    return value


def shared_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """The initializer of that name where it holds `array` already; a new one otherwise."""
    existing = graph.initializers.get(name)
    held = None if existing is None or existing.const_value is None else existing.const_value.numpy()
    if existing is not None and held is not None and held.dtype == array.dtype and np.array_equal(held, array):
        return existing
    return constant_value(graph, name, array)


def shared_code(graph: ir.Graph, code: NDArray[Any]) -> ir.Value:
    """The initializer that holds an integer scalar, named after it: `int8_minus_7`; one for all users."""
    return shared_constant(graph, f"{code.dtype}_{code}".replace("-", "minus_"), code)


def replace_value(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Lets all readers of `old`, which a node of the graph computes, read `new`; an output of the graph keeps its name.

    `new` takes over the name where it can. An input, an initializer, another output and a value of an outer graph keep their own
    name: an Identity then makes the output.
    """
    if old.is_graph_output():
        new = _under_name_of(graph, old, new)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _under_name_of(graph: ir.Graph, old: ir.Value, new: ir.Value) -> ir.Value:
    producer, name = new.producer(), str(old.name)
    bound = producer is None or producer.graph not in (graph, None) or new.is_graph_output()
    if bound:
        carrier = ir.node("Identity", [new], name=fresh_name(graph, f"{name}_Identity"))
        carrier.outputs[0].type, carrier.outputs[0].shape = old.type, old.shape
        graph.append(carrier)
        new = carrier.outputs[0]
    old.name = fresh_value_name(graph, f"{name}_replaced")  # goes with its node
    new.name = name
    return new


def sole_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value; None if there are more, if it is in a branch or body, or if it is a graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    user = next(iter(uses)).node
    return user if user.graph is value.graph else None


def fresh_name(graph: ir.Graph, name: str) -> str:
    """A node name that the graph does not use yet: `name` itself where it is free."""
    return _free(name, graph.meta.setdefault(_NODES, set()) or _taken(graph, _NODES))


def fresh_value_name(graph: ir.Graph, name: str) -> str:
    """A value name that the graph does not use yet: `name` itself where it is free."""
    return _free(name, graph.meta.setdefault(_VALUES, set()) or _taken(graph, _VALUES))


def forget_names(graph: ir.Graph) -> None:
    """Forgets which names are taken; to be called after a pass that makes nodes or values itself."""
    graph.meta.pop(_NODES, None)
    graph.meta.pop(_VALUES, None)


def _taken(graph: ir.Graph, kind: str) -> set[str]:
    nodes = list(graph.all_nodes())
    if kind == _NODES:
        taken = {str(node.name) for node in nodes}
    else:
        taken = {str(value.name) for node in nodes for value in node.outputs}
        for one in (graph, *graph.subgraphs()):  # a name inside a branch must not be one of the graph around it
            taken.update(str(value.name) for value in one.inputs)
            taken.update(one.initializers)
    graph.meta[kind] = taken
    return taken


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def make_inputs(graph: ir.Graph, names: Iterable[str]) -> None:
    """Turns initializers into graph inputs, in place; other names are ignored."""
    for name in names:
        value = graph.initializers.pop(name, None)
        if value is None:
            continue
        tensor, value.const_value = value.const_value, None
        if tensor is not None:
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(list(tensor.shape.numpy()))
        if value not in graph.inputs:
            graph.inputs.append(value)
