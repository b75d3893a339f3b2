"""Inputs that are the same at every use, such as a flag that says whether the model trains: made constants of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import FIXED_INPUTS
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.sizes import FIXED_SIZES, fixed_sizes, free_sizes


def with_fixed_inputs(model: io.ModelLike, values: Mapping[str, Any]) -> io.ModelLike:
    """The model itself where nothing is fixed, else a copy with these inputs as constants."""
    if not values:
        return model
    loaded = io.load(model, oldest_opset=7)
    fix_inputs(loaded, values)
    proto: onnx.ModelProto = io.to_proto(loaded)
    return proto


def fix_inputs(model: ir.Model, values: Mapping[str, Any]) -> None:
    """Makes inputs constants, in place. Batches may go on to hold them: they are left out.

    Args:
        model: the float model.
        values: a number, a flag or a nested list for each of the inputs; a number fills an input of any fixed shape. Under the
            name of a free size of the inputs, the number that the deployed model has there.

    Raises:
        InputError: there is no such input, or the value does not fit it.
    """
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs if not value.is_initializer()}
    sizes = {name for name, _, _ in free_sizes(graph)}
    for name, given in values.items():
        if name not in inputs and name in sizes:
            _note_size(model, name, given)
            continue
        if name not in inputs:
            free = f", with the sizes {', '.join(map(repr, sorted(sizes)))}" if sizes else ""
            raise InputError(
                f"fixed input {name!r}: the model has no such input; it takes {', '.join(map(repr, inputs))}{free}"
            )
        value = inputs[name]
        graph.inputs.remove(value)
        value.const_value = ir.tensor(_fitting(value, given), name=name)
        graph.register_initializer(value)
    if values:
        model.metadata_props[FIXED_INPUTS] = json.dumps(sorted(inputs.keys() & values.keys()))


def _note_size(model: ir.Model, name: str, given: Any) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise InputError(
            f"fixed input {name!r}: is a size of the inputs, which {given!r} cannot be; give a number from 1"
        )
    model.metadata_props[FIXED_SIZES] = json.dumps({**fixed_sizes(model), name: given})


def _fitting(value: ir.Value, given: Any) -> NDArray[Any]:
    wanted = np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
    sizes = list(value.shape) if value.shape is not None else []
    array = np.asarray(given)
    fits = array.dtype.kind == wanted.kind or (wanted.kind in "fiu" and array.dtype.kind in "iu")
    if not fits or (array.ndim == 0 and not all(isinstance(size, int) for size in sizes)):
        raise InputError(
            f"fixed input {value.name!r}: is {wanted} of shape [{', '.join(map(str, sizes))}], which {given!r} does not fit; "
            "give a value of that type, as a list where sizes are free"
        )
    if array.ndim == 0:
        return np.full([int(size) for size in sizes if isinstance(size, int)], array, wanted)
    if len(sizes) != array.ndim or any(isinstance(s, int) and s != n for s, n in zip(sizes, array.shape, strict=True)):
        raise InputError(f"fixed input {value.name!r}: has shape {list(array.shape)}, not {sizes}; reshape it")
    return array.astype(wanted)
