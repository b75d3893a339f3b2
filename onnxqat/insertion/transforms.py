"""Fixed transforms at the input of a model: short-time Fourier transforms, constant-Q and mel filters, written as layers.

The model takes a magnitude and then a logarithm of their result. Small values then count as much as large ones, but 8 bits keep
only the large ones. Only data movement and linear arithmetic stand between such a layer and the magnitude, on every path, and no
learned layer is above it: that tells it from learned layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import MOVEMENT
from onnxqat.graph.naming import label
from onnxqat.insertion.groups import Group, Skip, inputs, is_float
from onnxqat.targets import Target

_LAYERS = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
_MAGNITUDES = frozenset({"Abs", "Log", "Pow", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", "Sqrt"})
_BEHIND = "between a transform of the input and the next layer, where 8 bits lose what is small"
_LINEAR = MOVEMENT | {"Add", "Cast", "Clip", "Concat", "Neg", "ReduceSum", "Sub"}


def fixed_transforms(nodes: Sequence[ir.Node], groups: Sequence[Group], target: Target, config: Config) -> list[Skip]:
    """The layers of the groups that are such transforms, and on a target that takes every value as integers what is behind them.

    None where no other layer would be left; one that `only` names or an override gives bits is quantized all the same.
    """
    layers = [node for node in nodes if node.op_type in _LAYERS]
    found: dict[ir.Node, ir.Node] = {}
    for node in layers:
        learned = set(layers) - found.keys()
        magnitude = None if _is_behind(node, learned) else _magnitude(node, learned)
        if magnitude is not None:
            found[node] = magnitude
    weighted = [group.node for group in groups if group.weight is not None]
    left = [node for node in weighted if node in found and not _is_asked_for(node, config)]
    if len(left) == len(weighted):
        return []
    behind = _behind(left, nodes) if target.placement.whole else set()
    return [Skip(node, _reason(found[node])) for node in left] + [
        Skip(node, _BEHIND) for node in nodes if node in behind
    ]


def _behind(transforms: Collection[ir.Node], nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes that compute from the transforms alone, up to the next layers."""
    values = {output for node in transforms for output in node.outputs}
    found: set[ir.Node] = set()
    for node in nodes:
        computed = [value for value in inputs(node) if is_float(value) and constant(value) is None]
        if node.op_type not in _LAYERS and computed and values.issuperset(computed):
            found.add(node)
            values.update(node.outputs)
    return found


def _reason(magnitude: ir.Node) -> str:
    return f"a transform of the input, of which {label(magnitude)} takes the magnitude: 8 bits lose what is small in it"


def _is_asked_for(node: ir.Node, config: Config) -> bool:
    widths = {"weight_bits", "quantize_weights"}
    overridden = any(rule.matches(node) and widths & rule.settings.keys() for rule in config.overrides)
    return overridden or any(rule.name == node.name for rule in config.only)


def _is_behind(node: ir.Node, learned: Collection[ir.Node]) -> bool:
    """Whether the data of the node comes out of a learned layer."""
    seen: set[ir.Node | None] = {None}
    todo = [value.producer() for value in node.inputs[:1] if value is not None]
    while todo:
        above = todo.pop()
        if above is None or above in seen:
            continue
        if above in learned:
            return True
        seen.add(above)
        todo += [value.producer() for value in inputs(above)]
    return False


def _magnitude(node: ir.Node, learned: Collection[ir.Node]) -> ir.Node | None:
    """The node that takes the magnitude of what the layer computes, if all paths lead to one."""
    first: ir.Node | None = None
    values = [node.outputs[0]]
    for value in values:
        users = value.consumers()
        if value.is_graph_output() or not users:
            return None
        for user in users:
            if user.op_type in _MAGNITUDES or (user.op_type == "Mul" and user.inputs[0] is user.inputs[1]):
                first = first or user
            elif user in learned or not _is_linear(user):
                return None
            else:
                values += [output for output in user.outputs if output.name and output not in values]
    return first


def _is_linear(node: ir.Node) -> bool:
    scaled = node.op_type in ("Mul", "Div") and any(constant(value) is not None for value in inputs(node))
    return scaled or node.op_type in _LINEAR
