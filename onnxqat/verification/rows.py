"""Selects samples of a batch, for a model that takes any number of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.data.samples import Samples
from onnxqat.verification.host import Arrays


def one_row(inputs: Arrays, row: int | None, model: ir.Model) -> Arrays:
    """Returns that row of every input if the model takes any number: a whole batch would need much memory to probe."""
    if row is None:
        return inputs
    axes = _free_axes(inputs, model)
    return inputs if axes is None else _taken(inputs, axes, range(row, row + 1))


def in_parts(inputs: Arrays, model: ir.Model, size: int) -> Iterator[Arrays]:
    """The batch in parts of `size` samples, if the model takes any number; else as it is."""
    axes = _free_axes(inputs, model)
    if axes is None:
        yield inputs
        return
    count = Samples.of(model).rows(inputs, list(inputs))
    for start in range(0, count, size):
        yield _taken(inputs, axes, range(start, min(start + size, count)))


def _free_axes(inputs: Arrays, model: ir.Model) -> dict[str, int | None] | None:
    """The axis of each input that counts samples; None where the model does not take any number of them."""
    samples = Samples.of(model)
    count = samples.rows(inputs, list(inputs))
    axes = {name: samples.axis_of(name, array, count) for name, array in inputs.items()}
    shapes = {str(value.name): value.shape for value in model.graph.inputs if value.name in inputs}
    for name, axis in axes.items():
        shape = shapes[name]
        if shape is None or shape.rank() == 0 or (axis is not None and isinstance(shape[axis], int)):
            return None
    return axes


def _taken(inputs: Arrays, axes: dict[str, int | None], rows: range) -> Arrays:
    return {name: array if (axis := axes[name]) is None else array.take(rows, axis) for name, array in inputs.items()}
