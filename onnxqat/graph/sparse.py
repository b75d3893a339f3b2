"""Writes sparse initializers out as dense ones, which are all that later code knows."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

#: Elements of one initializer; more would not fit into a file.
LARGEST = 2**29


def dense(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where it has no sparse initializers, else a copy with dense ones in their place.

    Raises:
        ValueError: one is too large, or its indices do not fit its shape.
    """
    if not proto.graph.sparse_initializer:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.initializer.extend(_dense(tensor) for tensor in copy.graph.sparse_initializer)
    del copy.graph.sparse_initializer[:]
    return copy


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, shape = tensor.values.name, tuple(tensor.dims)
    if any(size < 0 for size in shape) or prod(shape) > LARGEST:
        raise ValueError(f"sparse initializer {name!r} of shape {list(shape)} is too large")
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    flat = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
    if flat.size != values.size or (flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < prod(shape)):
        raise ValueError(f"sparse initializer {name!r} has indices that do not fit its shape")
    array = np.zeros(prod(shape), values.dtype)
    array[flat] = values
    return numpy_helper.from_array(array.reshape(shape), name)
