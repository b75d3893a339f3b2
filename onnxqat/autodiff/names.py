"""Names of gradients: `<name>_grad`."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.edit import forget_names, fresh_value_name

SUFFIX = "_grad"


def reserve_gradient_names(graph: ir.Graph, wrt: Collection[str]) -> None:
    """Keeps the names of the gradients of `wrt` free: a value inside the graph that has one is renamed, in place.

    Raises:
        InputError: an input or output is called as the gradient of a parameter; the message names it.
    """
    forget_names(graph)
    ends = {str(end.name) for end in (*graph.inputs, *graph.outputs)}.union(wrt)
    inside = {str(value.name): value for node in graph for value in node.outputs}
    inside.update(graph.initializers)
    for base in wrt:
        name = f"{base}{SUFFIX}"
        if name in ends:
            raise InputError(f"model: {name!r} is called as the gradient of {base!r} will be; rename it")
        if fresh_value_name(graph, name) != name:  # it is taken until now, and reserved from now on
            inside[name].name = fresh_value_name(graph, f"{name}ient")
