"""Blocks: where a Q/DQ model can be cut so that each piece is compared with the float model by one value."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from onnxqat.graph.qdq import quantizers
from onnxqat.graph.subgraph import read, readers

#: Weighted layers that a block holds at least: what one layer gets wrong, its neighbour can make good (Li et al. 2021).
LEAST = 4
#: Weighted layers behind which a block ends although other values pass its end, as in a U-Net.
MOST = 6
#: Operators before which no block ends: what they cut off or bend need not be learned.
ACTIVATIONS = frozenset(
    {"Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu", "Relu"}
    | {"Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"}
)


def borders(model: ir.Model, named: Container[str | None]) -> list[ir.Value]:
    """The values that end blocks, in order of execution; the last are the model's outputs, before a Softmax of theirs.

    A block ends where all that layers have computed passes through one value, or else after `MOST` layers.

    Args:
        model: the Q/DQ model.
        named: names of the float model's nodes; a block ends only behind one of these.
    """
    layers, behind = weighted(model), behind_layers(model)
    ends, used_by = last(model.graph), readers(model.graph)
    done: set[ir.Node] = set()
    alive: set[ir.Value] = set()
    found, count = [], 0
    for node in model.graph:
        done.add(node)
        count += node in layers
        alive.update(behind.intersection(node.outputs))
        alive = {value for value in alive if not used_by.get(value, set()) <= done}
        value = node.outputs[0]
        enough = LEAST if alive == {value} else MOST
        if value in ends or (count >= enough and node.name in named and _can_end(value, alive, used_by)):
            found.append(value)
            count = 0
    return found


def weighted(model: ir.Model) -> set[ir.Node]:
    """The nodes that read a quantized weight."""
    return {use.node for one in quantizers(model) if one.is_weight for use in one.output.uses()}


def behind_layers(model: ir.Model) -> set[ir.Value]:
    """The values that weighted layers decide."""
    layers = weighted(model)
    found: set[ir.Value] = set()
    for node in model.graph:
        if node in layers or not found.isdisjoint(read(node)):
            found.update(node.outputs)
    return found


def last(graph: ir.Graph) -> set[ir.Value]:
    """The values that end the last blocks: the outputs, or what their Softmax reads."""
    ends = set()
    for output in graph.outputs:
        node = output.producer()
        before = node.inputs[0] if node is not None and node.op_type == "Softmax" else None
        ends.add(output if before is None or before.producer() is None else before)
    return ends


def _can_end(value: ir.Value, alive: set[ir.Value], used_by: dict[ir.Value, set[ir.Node]]) -> bool:
    """Whether a value is one of the float model's that nothing reshapes, and no codes pass beside it."""
    if value not in alive or value.dtype != ir.DataType.FLOAT or _is_code(value):
        return False
    return all(node.op_type not in ACTIVATIONS for node in used_by[value]) and not any(map(_is_code, alive - {value}))


def _is_code(value: ir.Value) -> bool:
    """Whether a value lies inside a quantizer."""
    node = value.producer()
    return node is not None and (node.op_type == "QuantizeLinear" or value.dtype not in (None, ir.DataType.FLOAT))
