"""HardSigmoid and HardSwish that exporters write as arithmetic, brought to one operator each.

Runtimes compute that operator faster than its parts, and multiply by a HardSigmoid on integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import fresh_value_name, replace_value, sole_user
from onnxqat.insertion.groups import inputs, is_float
from onnxqat.insertion.preparation.simplify import put_in_place

#: HardSwish is x · HardSigmoid(x) of this slope and offset.
SLOPE, OFFSET = 1 / 6, 1 / 2
FIRST_OPSET_OF_HARD_SWISH = 14


@dataclass(frozen=True)
class _Line:
    """x · slope + offset."""

    x: ir.Value
    slope: float = 1.0
    offset: float = 0.0


def write_hard_activations(graph: ir.Graph) -> None:
    """Clip(a·x + b, 0, c) / c becomes HardSigmoid, and x times that HardSwish, wherever the division stands."""
    for node in list(graph):
        if node.op_type == "Clip" and node.inputs[0] is not None and is_float(node.inputs[0]):
            _write_hard_sigmoid(graph, node)
    if graph.opset_imports.get("", 0) >= FIRST_OPSET_OF_HARD_SWISH:
        for node in list(graph):
            x = _gated(node)
            if x is not None:
                put_in_place(graph, node, ir.node("HardSwish", [x], name=node.name))


def _write_hard_sigmoid(graph: ir.Graph, clip: ir.Node) -> None:
    top, lines = _top(clip), list(_lines(clip.inputs[0]))  # type: ignore[arg-type]
    user = sole_user(clip.outputs[0])
    if top is None or lines[-1].offset == 0:
        return
    if top == 1.0:
        put_in_place(graph, clip, _hard_sigmoid(clip, lines[-1], top))
    elif user is not None and _factor(user) is not None:
        if isclose(_factor(user) or 0, 1 / top, rel_tol=1e-6):
            put_in_place(graph, user, _hard_sigmoid(clip, lines[-1], top))
    elif user is not None and user.op_type == "Mul":
        _write_gate(graph, clip, user, {line.x: line for line in lines}, top)


def _write_gate(graph: ir.Graph, clip: ir.Node, product: ir.Node, lines: dict[ir.Value, _Line], top: float) -> None:
    """The clipped value is multiplied by x before the division, or by x divided already."""
    (other,) = [value for value in inputs(product) if value is not clip.outputs[0]] or [clip.outputs[0]]
    behind = sole_user(product.outputs[0])
    divided = [line.x for line in _lines(other) if line.x in lines and isclose(line.slope, 1 / top, rel_tol=1e-6)]
    later = other in lines and behind is not None and isclose(_factor(behind) or 0, 1 / top, rel_tol=1e-6)
    if not divided and not later:
        return
    x = divided[0] if divided else other
    sigmoid = _hard_sigmoid(clip, lines[x], top)
    gate = sigmoid.outputs[0]
    gate.name, gate.type, gate.shape = fresh_value_name(graph, f"{clip.name}_gate"), x.type, x.shape
    graph.insert_before(product, sigmoid)
    for index, value in enumerate((x, gate)):
        product.replace_input_with(index, value)
    if not divided and behind is not None:
        replace_value(graph, behind.outputs[0], product.outputs[0])
        graph.remove(behind, safe=True)


def _hard_sigmoid(clip: ir.Node, line: _Line, top: float) -> ir.Node:
    return ir.node("HardSigmoid", [line.x], {"alpha": line.slope / top, "beta": line.offset / top}, name=clip.name)


def _gated(node: ir.Node) -> ir.Value | None:
    """The x of x · HardSigmoid(x) with HardSwish's slope; None for any other node."""
    for gate, x in zip(node.inputs, reversed(node.inputs), strict=True) if node.op_type == "Mul" else ():
        sigmoid = None if gate is None else gate.producer()
        if sigmoid is None or sigmoid.op_type != "HardSigmoid" or sigmoid.inputs[0] is not x or not is_float(x):
            continue
        numbers = sigmoid.attributes.get_float("alpha", 0.2), sigmoid.attributes.get_float("beta", 0.5)
        if all(isclose(a, b, rel_tol=1e-5) for a, b in zip(numbers, (SLOPE, OFFSET), strict=True)):
            return x if gate is not None and sole_user(gate) is node else None
    return None


def _top(clip: ir.Node) -> float | None:
    """The upper bound of a Clip that begins at 0."""
    bounds = [constant(value) for value in clip.inputs[1:3]]
    if len(bounds) < 2 or bounds[0] is None or bounds[1] is None or bounds[0].item() != 0 or bounds[1].item() <= 0:
        return None
    return float(bounds[1].item())


def _lines(value: ir.Value) -> Iterator[_Line]:
    """The value as a line in itself, and in what it is computed from by scalars, one factor and one term at most."""
    line = _Line(value)
    yield line
    for kinds in (("Add", "Sub"), ("Mul", "Div")):
        node = line.x.producer()
        found = None if node is None or node.op_type not in kinds else _by_scalar(node)
        if found is not None:
            data, factor, term = found
            line = _Line(data, line.slope * factor, line.slope * term + line.offset)
            yield line


def _factor(node: ir.Node) -> float | None:
    found = _by_scalar(node) if node.op_type in ("Mul", "Div") else None
    return None if found is None else found[1]


def _by_scalar(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """Data, factor and term of an Add, Sub, Mul or Div by a scalar that leaves the shape as it is."""
    left, right = inputs(node)
    data, other = (left, right) if constant(right) is not None else (right, left)
    array = constant(other)
    if array is None or array.size != 1 or (data is right and node.op_type in ("Sub", "Div")) or data.shape is None:
        return None
    scalar = float(array.item())
    if array.ndim > data.shape.rank() or (node.op_type == "Div" and scalar == 0):
        return None
    return {
        "Add": (data, 1.0, scalar),
        "Sub": (data, 1.0, -scalar),
        "Mul": (data, scalar, 0.0),
        "Div": (data, 1 / scalar if scalar else 0.0, 0.0),
    }[node.op_type]
