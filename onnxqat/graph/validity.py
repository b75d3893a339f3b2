"""Checks a model in protobuf form: by ONNX's checker, without the weights, and for what the checker leaves out."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from onnxqat.graph import external

#: What the checker says of operators, all of which are named together.
_DEALT_WITH_LATER = ("No Op registered for", "No opset import")


def check_valid(proto: onnx.ModelProto, *, whole: bool = False) -> None:
    """Checks a model of any size, in memory that does not depend on its weights.

    Args:
        proto: the model.
        whole: whether to refuse also what later steps of loading name or complete.

    Raises:
        ValueError: the model is not valid; the message says why.
    """
    for node in proto.graph.node:
        if any(isinstance(name, bytes) for name in (node.name, *node.input, *node.output)):
            raise ValueError("a name is not UTF-8 text")
    if not proto.graph.output:
        raise ValueError("it has no outputs")
    for tensor in external.all_tensors(proto):
        _check_size(tensor)
    try:
        bare = external.without_weights(proto)
        if not whole:
            _state_shapes(bare)
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as error:
        if whole or not any(words in str(error) for words in _DEALT_WITH_LATER):
            raise ValueError(str(error)) from error


def _state_shapes(proto: onnx.ModelProto) -> None:
    """Gives inputs and outputs without a shape a placeholder: the checker would stop there, and shapes are inferred later."""
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()


def _check_size(tensor: onnx.TensorProto) -> None:
    """Raises ValueError where a tensor does not hold as many elements as its shape says."""
    what = f"tensor {tensor.name!r} does not have the size that its shape says"
    if any(size < 0 for size in tensor.dims):
        raise ValueError(what)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.raw_data:
        if len(tensor.raw_data) != external.tensor_bytes(tensor):
            raise ValueError(what)
        return
    try:
        numpy_helper.to_array(tensor)
    except Exception:
        raise ValueError(what) from None
