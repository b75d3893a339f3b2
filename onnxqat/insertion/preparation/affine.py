"""Per-channel scale and shift behind a weighted node, BatchNormalization first of all, folded into its weight and bias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import masks
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value, sole_user
from onnxqat.graph.qdq import FOLDED
from onnxqat.insertion.groups import inputs, is_float

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Affine:
    """y = x · scale + shift along the channel axis 1; both [C] or []."""

    data: ir.Value
    scale: Floats
    shift: Floats


def fold_affine(graph: ir.Graph) -> None:
    """Folds BatchNormalization, and Mul, Div, Add, Sub by per-channel constants, into the Conv, ConvTranspose or Gemm before.

    W' = W · scale, b' = b · scale + shift. An activation in between stops it: Relu before BatchNormalization stays as it is.
    """
    for node in list(graph):
        affine = _read(node)
        if affine is None:
            continue
        producer = affine.data.producer()
        if producer is not None and sole_user(affine.data) is node and _fold_into(graph, producer, affine):
            result = producer.outputs[0]
            result.shape = node.outputs[0].shape if result.shape is None else result.shape
            replace_value(graph, node.outputs[0], result)
            graph.remove(node, safe=True)


def decompose_batch_normalization(graph: ir.Graph) -> None:
    """Writes what is left of BatchNormalization as Mul and Add, which train and need no running statistics."""
    for node in list(graph):
        affine = _read(node) if node.op_type == "BatchNormalization" else None
        if affine is None or affine.data.shape is None:
            continue
        rank = affine.data.shape.rank()
        shape = [-1] + [1] * (rank - 2)
        scale = constant_value(graph, f"{node.name}_scale", affine.scale.reshape(shape))
        shift = constant_value(graph, f"{node.name}_shift", affine.shift.reshape(shape))
        multiply = ir.node("Mul", [affine.data, scale], name=fresh_name(graph, f"{node.name}_Mul"))
        multiply.outputs[0].type, multiply.outputs[0].shape = node.outputs[0].type, affine.data.shape
        add = ir.node("Add", [multiply.outputs[0], shift], name=fresh_name(graph, f"{node.name}_Add"))
        add.outputs[0].type, add.outputs[0].shape = node.outputs[0].type, affine.data.shape
        graph.insert_before(node, [multiply, add])
        multiply.outputs[0].name = fresh_value_name(graph, f"{multiply.name}_output")
        add.outputs[0].name = fresh_value_name(graph, f"{add.name}_output")
        replace_value(graph, node.outputs[0], add.outputs[0])
        graph.remove(node, safe=True)


def _read(node: ir.Node) -> Affine | None:
    if not node.outputs or not is_float(node.outputs[0]):
        return None
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node)
    return _arithmetic(node) if node.op_type in ("Mul", "Div", "Add", "Sub") else None


def _arithmetic(node: ir.Node) -> Affine | None:
    """Mul, Div, Add or Sub by constants that run along the channels."""
    left, right = inputs(node)
    data, other = (left, right) if constant(right) is not None else (right, left)
    factor = constant(other)
    if factor is None or (data is right and node.op_type in ("Div", "Sub")):
        return None
    per_channel = _per_channel(factor, data)
    if per_channel is None or masks(per_channel):
        return None
    one, zero = np.asarray(np.float32(1)), np.asarray(np.float32(0))
    if node.op_type == "Mul":
        return Affine(data, per_channel, zero)
    if node.op_type == "Div":
        return Affine(data, one / per_channel, zero) if np.all(per_channel) else None
    return Affine(data, one, per_channel if node.op_type == "Add" else -per_channel)


def _batch_normalization(node: ir.Node) -> Affine | None:
    parameters = [constant(value) for value in node.inputs[1:5]]
    training = node.attributes.get_int("training_mode", 0)
    data = node.inputs[0]
    if training or data is None or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return Affine(data, scale.astype(np.float32), (beta - mean * scale).astype(np.float32))


def _per_channel(factor: NDArray[np.generic], data: ir.Value) -> Floats | None:
    """`factor` as [C] along axis 1 of `data` or as a scalar; None if it varies elsewhere."""
    if not np.issubdtype(factor.dtype, np.floating) or data.shape is None:
        return None
    rank = data.shape.rank()
    if factor.size == 1 and factor.ndim <= rank:
        return np.asarray(factor, np.float32).reshape(())
    shape = (1,) * (rank - factor.ndim) + factor.shape
    if len(shape) != rank or rank < 2 or shape[1] != factor.size or data.shape[1] != factor.size:
        return None
    return np.asarray(factor, np.float32).reshape(-1)


def _fold_into(graph: ir.Graph, producer: ir.Node, affine: Affine) -> bool:
    weight = constant(producer.inputs[1]) if _takes_factors(producer) else None
    old_bias = producer.inputs[2] if len(producer.inputs) > 2 else None
    bias = np.float32(0) if old_bias is None else constant(old_bias)
    if weight is None or bias is None or weight.dtype != np.float32:
        return False
    channels, along = _output_channels(producer, weight)
    scale = np.broadcast_to(np.asarray(affine.scale, np.float64), (channels,))
    new_bias = np.broadcast_to(np.asarray(bias, np.float64), (channels,)) * scale + affine.shift
    stem = str(producer.inputs[1].name)  # type: ignore[union-attr]
    if not np.all(scale == 1):
        producer.metadata_props[FOLDED] = "scale"
        _put(graph, producer, 1, (weight * along(scale)).astype(np.float32), stem)
    _put(graph, producer, 2, new_bias.astype(np.float32), f"{stem}_bias" if old_bias is None else str(old_bias.name))
    return True


def _takes_factors(producer: ir.Node) -> bool:
    """Whether per-channel factors and shifts of its output can go into the node's weight and bias."""
    if producer.op_type != "Gemm":
        return producer.op_type in ("Conv", "ConvTranspose")
    bias = constant(producer.inputs[2]) if len(producer.inputs) > 2 else None
    plain = all(producer.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return plain and (bias is None or bias.ndim <= 1)


def _output_channels(producer: ir.Node, weight: Floats) -> tuple[int, Callable[[Floats], Floats]]:
    """Number of output channels, and how to lay [channels] out so that it broadcasts over the weight."""
    ones = [1] * (weight.ndim - 2)
    if producer.op_type == "ConvTranspose":  # [in, out / group, ...]: rows of input channels belong to groups
        group = producer.attributes.get_int("group", 1)
        rows = weight.shape[0] // group
        channels = weight.shape[1] * group
        return channels, lambda c: np.repeat(c.reshape(group, -1), rows, axis=0).reshape(weight.shape[:2] + tuple(ones))
    if producer.op_type == "Gemm" and not producer.attributes.get_int("transB", 0):
        return weight.shape[1], lambda c: c.reshape(1, -1)
    return weight.shape[0], lambda c: c.reshape(-1, 1, *ones)


def _put(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[np.float32], name: str) -> None:
    """Sets an input of the node to `array`: in place where the initializer is its own, as a new one where it is shared."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_input():
        old.const_value = ir.tensor(array, name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, constant_value(graph, name, array))
