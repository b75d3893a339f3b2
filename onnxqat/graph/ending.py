"""The activation that an output comes from, looked up through nodes that leave its values as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.movement import REARRANGING, SELECTING

#: Those that give one output, and one element for each index of an axis.
_SELECTING = SELECTING - {"GatherElements", "Split"}
_SAME = frozenset({"Dropout", "Identity"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_AVERAGING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_LINEAR = _LAYERS | {"Add", "Einsum", "Sub"}
#: Operators whose output is as large as the data says.
_CHOOSING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: Range that a Clip must let pass to leave an activation's values as they are, except for the guard of a logarithm.
_PASSED = {"Softmax": (0.01, 0.99), "Sigmoid": (0.01, 0.99), "LogSoftmax": (-4.0, 0.0)}


@dataclass(frozen=True)
class Ending:
    """Activation that an output is made of, and the nodes between the two.

    Attributes:
        activation: Softmax, LogSoftmax or Sigmoid.
        movement: the nodes between it and the output that move elements, in order of execution.
        axis: along which axis of the output its Softmax runs; None for Sigmoid, and where shapes do not tell.
        merged: whether the nodes between have merged that axis with others, so that no axis of the output holds classes.
    """

    activation: ir.Node
    movement: tuple[ir.Node, ...]
    axis: int | None = None
    merged: bool = False

    @property
    def logits(self) -> ir.Value:
        """Input of the activation."""
        value = self.activation.inputs[0]
        assert value is not None
        return value


def ending(output: ir.Value) -> Ending | None:
    """The activation behind an output, if it has one: through movement, quantizers, casts and guards of logarithms."""
    value, movement, bounds = output, list[ir.Node](), list[tuple[float, float]]()
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.domain == "" and node.op_type in _PASSED:
            low, high = _PASSED[node.op_type]
            passes = all(below <= low and high <= above for below, above in bounds)
            return _found(node, tuple(movement[::-1])) if passes else None
        if node.op_type in REARRANGING | _SELECTING:
            movement.append(node)
        elif (clip := _clip(node)) is not None:
            bounds.append(clip)
        elif not _keeps_values(node):
            return None
        value = node.inputs[0]
    return None


def is_linear(output: ir.Value) -> bool:
    """Whether an output comes straight from a linear layer, so that it is no probability; an input or a constant counts too."""
    value = output
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        passes = node.op_type in REARRANGING | _SELECTING | _AVERAGING or _keeps_values(node)
        if not passes:
            return node.op_type in _LINEAR
        value = node.inputs[0]
    return True


def channel_axis(output: ir.Value) -> int | None:
    """The axis of an output that holds the channels of the layer it comes straight from; None where that cannot be told."""
    value, movement = output, list[ir.Node]()
    while (node := value.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type in REARRANGING:
            movement.append(node)
        elif node.op_type in _LAYERS:
            break
        elif node.op_type in ("Add", "Resize") or _keeps_values(node):
            pass
        else:
            return None
        value = node.inputs[0]
    if node is None or value.shape is None:
        return None
    axis: int | None = 1 if node.op_type in ("Conv", "ConvTranspose") else value.shape.rank() - 1
    for step in reversed(movement):
        axis = None if axis is None else moved_axis(step, axis)
        if axis == MERGED:
            return None
    return axis


def varies_in_size(output: ir.Value, inputs: Sequence[ir.Value]) -> bool:
    """Whether the size of an output depends on the data: boxes that are kept, places that are not zero."""
    known = {d.value for value in inputs for d in value.shape or () if isinstance(d, ir.SymbolicDim)}
    sizes = list(output.shape or ())
    if output.shape is not None and all(
        isinstance(d, int) or (d.value is not None and d.value in known) for d in sizes
    ):
        return False
    pending, seen = [output], set[ir.Value]()
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        if node.op_type in _CHOOSING:
            return True
        seen.add(value)
        pending.extend(one for one in node.inputs if one is not None)
    return False


def _found(node: ir.Node, movement: tuple[ir.Node, ...]) -> Ending | None:
    if any(step.op_type in _SELECTING for step in movement):
        return Ending(node, movement) if node.op_type == "Sigmoid" else Ending(node, movement, merged=True)
    if node.op_type == "Sigmoid":
        return Ending(node, movement)
    axis: int | None = node.attributes.get_int("axis", -1)
    shape = node.outputs[0].shape
    if axis is not None and axis < 0 and shape is not None:
        axis += shape.rank()
    for step in movement:
        if axis is None:
            break
        axis = moved_axis(step, axis)
        if axis == MERGED:
            return Ending(node, movement, merged=True)
    return Ending(node, movement, axis)


def _keeps_values(node: ir.Node) -> bool:
    if node.domain.startswith("onnxqat") or node.op_type in _SAME | _QUANTIZING:
        return True
    source, result = node.inputs[0], node.outputs[0]
    return node.op_type == "Cast" and source is not None and {source.dtype, result.dtype} <= {*_FLOATS, None}


def _clip(node: ir.Node) -> tuple[float, float] | None:
    """Constant bounds of a Clip, a Max or a Min of floats; None for other nodes and for Clips of codes."""
    if node.op_type not in ("Clip", "Max", "Min") or len(node.inputs) < 2:
        return None
    source = node.inputs[0]
    if source is not None and source.dtype is not None and source.dtype.is_integer():
        return (-float("inf"), float("inf"))
    limits = [constant(value) for value in node.inputs[1:3]]
    if any(value is not None and (c is None or c.size != 1) for value, c in zip(node.inputs[1:3], limits, strict=True)):
        return None
    numbers = [None if limit is None else float(limit.reshape(())) for limit in limits]
    low = numbers[0] if node.op_type != "Min" else None
    high = numbers[-1] if node.op_type == "Min" or len(numbers) > 1 else None
    return -float("inf") if low is None else low, float("inf") if high is None else high


#: An axis that no axis of the output corresponds to.
MERGED = -1


def moved_axis(node: ir.Node, axis: int) -> int | None:
    """Returns the axis of the output that an axis of the input becomes; None if unknown, `MERGED` if it is merged."""
    before = None if node.inputs[0] is None else node.inputs[0].shape
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", None)
        if order is None and before is None:
            return None
        return list(order if order is not None else reversed(range(before.rank() if before else 0))).index(axis)
    after = node.outputs[0].shape
    if before is None or after is None:
        return None
    return _regrouped(list(before), list(after), axis)


def _regrouped(before: Sequence[int | ir.SymbolicDim], after: Sequence[int | ir.SymbolicDim], axis: int) -> int | None:
    """The axis with as many elements, and as many behind it (or the same axes before it)."""
    size, behind = before[axis], before[axis + 1 :]
    if not isinstance(size, int):
        return None
    ahead = [d for d in before[:axis] if d != 1]
    for index, found in enumerate(after):
        if found == size and [d for d in after[:index] if d != 1] == ahead and _named(ahead):
            return index
    if not _fixed(behind):
        return None
    for index, found in enumerate(after):
        if found == size and _fixed(after[index + 1 :]) and _count(after[index + 1 :]) == _count(behind):
            return index
    return MERGED if _fixed(after[1:]) else None


def _named(sizes: Sequence[int | ir.SymbolicDim]) -> bool:
    return all(isinstance(size, int) or size.value is not None for size in sizes)


def _fixed(sizes: Sequence[int | ir.SymbolicDim]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _count(sizes: Sequence[int | ir.SymbolicDim]) -> int:
    return prod(int(size) for size in sizes if isinstance(size, int))
