"""Axis of inputs and outputs that counts samples: one rule for calibration, training, processes and verification.

Usually it is the first one. Time-first recurrent networks have another: the axis whose size has the same batch-like name in
inputs and outputs, or the axis along which a recurrent layer reads samples, or else the one that comes first in the output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError

Arrays = Mapping[str, NDArray[Any]]
_BATCH = re.compile(r"n|b|bs|(.*[_\W])?batch([_\W].*)?|batchsize|samples?|num_samples", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"unk__|\?|dynamic|.*dim_?\d")
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
#: Operators that keep all axes of their first input in place, except the last.
_LEAVES_AXES = frozenset(
    {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Identity", "LayerNormalization"}
)
_LEAVES_AXES |= {"MatMul", "Mul", "QuantizeLinear", "Relu", "Sigmoid", "Sub", "Tanh"}


@dataclass(frozen=True)
class Samples:
    """The axis that counts samples in each input and output.

    Attributes:
        inputs: axis of each input, None where an input is not made of samples; the first where a name is missing.
        outputs: likewise.
    """

    inputs: Mapping[str, int | None] = field(default_factory=dict)
    outputs: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, given: int | None = None) -> Samples:
        """The sample axes of a model; `given` is that of its first input, where the user says it.

        Raises:
            InputError: the first input has no such axis.
        """
        inputs = [value for value in model.graph.inputs if not value.is_initializer() and _rank(value) != 0]
        outputs = list(model.graph.outputs)
        if not inputs or not outputs:
            return cls()
        first = inputs[0]
        axis = _sample_axis(model, first, outputs[0]) if given is None else _checked(given, first)
        size = None if first.shape is None else first.shape[axis]
        named = {str(value.name): _same(value, size, axis) for value in inputs[1:]}
        return cls(
            {str(first.name): axis, **named},
            {str(value.name): axis if (found := _same(value, size, axis)) is None else found for value in outputs},
        )

    def rows(self, batch: Arrays, names: Sequence[str]) -> int:
        """Samples of a batch: the length of the sample axis of the first input that has one."""
        return next((array.shape[axis] for array, axis in self._known(batch, names)), 1)

    def first(self, batch: Arrays, names: Sequence[str], rows: int) -> dict[str, NDArray[Any]]:
        """The inputs of the first `rows` samples of a batch."""
        axes = {name: self.inputs.get(name, 0) for name in names if name in batch}
        return {
            name: batch[name]
            if axis is None or axis >= batch[name].ndim
            else batch[name][(slice(None),) * axis + (slice(rows),)]
            for name, axis in axes.items()
        }

    def leading(
        self, batches: Iterable[dict[str, NDArray[Any]]], names: Sequence[str], rows: int
    ) -> Iterator[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """The batches with the first `rows` samples, and the share of each that counts: of the last one, what is left."""
        for batch in batches:
            held = self.rows(batch, names)
            yield batch, batch if held <= rows else self.first(batch, names, rows)
            rows -= held
            if rows <= 0:
                return

    def without(self, batch: Arrays, names: Sequence[str]) -> bool:
        """Whether a batch holds no sample: all its inputs are empty, or the first that is made of samples is along that axis."""
        known = list(self._known(batch, names))
        arrays = [batch[name] for name in names if name in batch]
        return bool(arrays and not any(a.size for a in arrays)) or bool(known and not known[0][0].shape[known[0][1]])

    def axis_of(self, name: str, array: NDArray[Any], rows: int) -> int | None:
        """The sample axis of an array (labels too) of a batch of `rows` samples; None where it has none."""
        labelled = name not in self.inputs
        axis = next(iter(self.outputs.values()), 0) if labelled else self.inputs[name]
        if axis is not None and axis < array.ndim and array.shape[axis] == rows:
            return axis
        return next((i for i, size in enumerate(array.shape) if size == rows), None) if labelled else None

    def cut(self, labels: Sequence[str]) -> dict[str, int]:
        """Axes along which inputs and labels are cut into batches; empty where it is the first of all inputs."""
        inputs = {name: axis for name, axis in self.inputs.items() if axis is not None}
        output = next(iter(self.outputs.values()), 0) or 0
        return {**inputs, **dict.fromkeys(labels, output)} if any(inputs.values()) else {}

    def _known(self, batch: Arrays, names: Sequence[str]) -> list[tuple[NDArray[Any], int]]:
        found = [(batch[name], self.inputs.get(name, 0)) for name in names if name in batch]
        return [(array, axis) for array, axis in found if axis is not None and axis < array.ndim]


def _checked(given: int, first: ir.Value) -> int:
    rank = _rank(first)
    if given < 0 or (rank is not None and given >= rank):
        raise InputError(f"sample_axis is {given}; input {first.name!r} has axes 0 to {rank - 1 if rank else 'any'}")
    return given


def _sample_axis(model: ir.Model, first: ir.Value, output: ir.Value) -> int:
    ours, theirs = _names(first), _names(output)
    shared = [axis for axis, name in enumerate(ours) if name is not None and name in theirs]
    speaking = [axis for axis in shared if _BATCH.fullmatch(str(ours[axis]))]
    if speaking:
        return speaking[0]
    recurrent = _read_by_recurrence(model, first)
    if recurrent is not None:
        return recurrent
    if shared and shared[0] != 0 and theirs[0] in ours:
        return ours.index(theirs[0])
    return 0


def _read_by_recurrence(model: ir.Model, first: ir.Value) -> int | None:
    """The axis of the input along which a recurrent layer finds samples, where nodes before it leave axes traceable."""
    for node in model.graph:
        layout: int | None = node.attributes.get_int("layout", 0)
        if node.op_type not in _RECURRENT or layout:
            continue
        value, axis = node.inputs[0], 1
        while value is not None and value is not first and (before := value.producer()) is not None:
            if before.op_type == "Transpose" and "perm" in before.attributes:
                axis = list(before.attributes.get_ints("perm") or ())[axis]
            elif before.op_type not in _LEAVES_AXES:
                break
            value = before.inputs[0]
        if value is first:
            return axis
    return None


def _same(value: ir.Value, size: int | ir.SymbolicDim | None, axis: int) -> int | None:
    """The axis of that size; where sizes have no names, the same axis, or the first free one."""
    if value.shape is None:
        return axis
    sizes = list(value.shape)
    if isinstance(size, ir.SymbolicDim) and size.value is not None and size in sizes:
        return sizes.index(size)
    if isinstance(size, int):
        return axis if axis < len(sizes) and sizes[axis] == size else None
    free = [i for i, other in enumerate(sizes) if isinstance(other, ir.SymbolicDim) and _may_be_samples(other, size)]
    return axis if axis in free else next(iter(free), None)


def _may_be_samples(other: ir.SymbolicDim, size: int | ir.SymbolicDim | None) -> bool:
    """Whether a size without a name, or one with a converter's or a batch's name, may be that of the samples."""
    named = isinstance(size, ir.SymbolicDim) and size.value is not None
    return not named or other.value is None or bool(_PLACEHOLDER.match(other.value) or _BATCH.fullmatch(other.value))


def _names(value: ir.Value) -> list[str | None]:
    return [d.value if isinstance(d, ir.SymbolicDim) else None for d in (value.shape or ())]


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()
