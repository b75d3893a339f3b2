"""Graph inputs that a loss adds to a model: labels, and a teacher's outputs."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxqat.errors import InputError

#: Beginnings of names in the training graph that no model of a user's has.
TEACHER = "onnxqat.teacher/"
LABEL = "onnxqat.label/"


def extra_input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Any = None) -> ir.Value:
    """The graph input of that name, added where it is not there.

    Raises:
        InputError: another loss has added it with another type.
    """
    for value in graph.inputs:
        if value.name == name:
            if value.dtype == dtype:
                return value
            raise InputError(
                f"loss: {name.removeprefix(LABEL)!r} would need two types, {value.dtype} and {dtype}; "
                "train with one of the losses"
            )
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=None if shape is None else ir.Shape(list(shape)))
    graph.inputs.append(value)
    return value
