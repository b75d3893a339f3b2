"""Names that the gradient builder gives: `<name>_grad` for every value on the path; no other value may have one."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.edit import fresh_value_name

SUFFIX = "_grad"


def free_gradient_names(graph: ir.Graph, wrt: Collection[str]) -> None:
    """Renames, in place, values inside the graph whose names collide with the name of a gradient.

    Raises:
        InputError: an input or output is called as the gradient of another or of a parameter; the message names it.
    """
    inside = [value for node in graph for value in node.outputs if not value.is_graph_output()]
    inside += [value for value in graph.initializers.values() if value.name not in wrt and not value.is_graph_input()]
    for value in inside:
        if value.name and value.name.endswith(SUFFIX):
            value.name = fresh_value_name(graph, f"{value.name}ient")
    known = {str(value.name): value for value in inside}
    ends = [str(end.name) for end in (*graph.inputs, *graph.outputs)]
    for name in {*ends, *wrt}:
        base = name.removesuffix(SUFFIX)
        if base == name:
            continue
        if base in known:
            known[base].name = fresh_value_name(graph, f"{base}_value")
        elif base in wrt or base in ends:
            raise InputError(f"model: {name!r} is called as the gradient of {base!r} will be; rename it")
