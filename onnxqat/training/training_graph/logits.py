"""The logits behind an output, and their view by classes: what losses over classes read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.ending import ending
from onnxqat.graph.naming import label
from onnxqat.graph.ops import Ops

log = logging.getLogger(__name__)

#: Graph input [1]: the class axis, where the labels of a batch must tell it.
CLASS_AXIS = "onnxqat.class_axis"
_END = 2**31 - 1


def logits_of(op: Ops, output: ir.Value, loss: str, losses: Mapping[str, str]) -> ir.Value:
    """Returns the input of the activation behind an output, moved as its result is; without one, the output itself.

    Args:
        op: the writer of nodes.
        output: an output of the model.
        loss: name of the loss.
        losses: for each activation, the loss that takes its input as logits.

    Raises:
        InputError: the output comes from an activation whose result the loss would take for logits.
    """
    found = ending(output)
    if found is None:
        return output
    node = found.activation
    if losses.get(node.op_type) != loss or found.merged:
        why = (
            "parts of it are left out or put together behind it" if found.merged else f"{loss} takes no {node.op_type}"
        )
        raise InputError(
            f"loss {loss!r}: output {output.name!r} comes from {label(node)}, and {why}; use "
            f"{losses[node.op_type]!r}, make the logits the first output, or give a function of your own"
        )
    log.info("the loss takes the input of %s as logits", label(node))
    return moved(op, found.movement, found.logits)


def moved(op: Ops, movement: Sequence[ir.Node], value: ir.Value) -> ir.Value:
    """The value behind copies of nodes that move data."""
    for node in movement:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        value = op.one(node.op_type, value, *node.inputs[1:], **attributes)
        value.shape = node.outputs[0].shape
    return value


def by_class(
    op: Ops, graph: ir.Graph, logits: ir.Value, label: ir.Value, axis: int | None
) -> tuple[ir.Value, ir.Value]:
    """Logits and labels as SoftmaxCrossEntropyLoss takes them, classes along axis 1; None: `CLASS_AXIS` is fed."""
    if axis == 1:
        return logits, label
    if axis is None:
        place = ir.Value(name=CLASS_AXIS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
        graph.inputs.append(place)
    else:
        place = op.ints([axis])
    sizes, behind = op.Shape(logits), op.Add(place, op.ints([1]))
    groups = [
        _count(op, op.Slice(sizes, op.ints([0]), place)),
        op.Slice(sizes, place, behind),
        _count(op, op.Slice(sizes, behind, op.ints([_END]))),
    ]
    together = op.Concat(*groups, axis=0)
    return op.Reshape(logits, together), op.Reshape(label, op.Concat(groups[0], groups[2], axis=0))


def _count(op: Ops, sizes: ir.Value) -> ir.Value:
    """The product of sizes, [1]; 1 where there are none."""
    return op.ReduceProd(op.Concat(op.ints([1]), sizes, axis=0), keepdims=1)
