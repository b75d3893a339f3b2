"""Biases as int32 of scale sx · sw, so that the kernel adds them to its accumulator (Jacob et al. 2018, section 2.4)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.edit import constant_value, fresh_name
from onnxqat.graph.movement import moved
from onnxqat.graph.qdq import Quantizer, constant

LARGEST = 2**31 - 1


def fold_bias(graph: ir.Graph, node: ir.Node, produced_by: dict[ir.Value, Quantizer]) -> None:
    """Gives a weighted node its bias as int32 codes behind a DequantizeLinear, its own even where the float bias was shared.

    Nothing happens where the node has no constant bias, or does not read integers on both sides.

    Raises:
        InputError: a code does not fit into int32, so the scales are too small for the bias.
    """
    adder, index = _bias_input(node)
    bias = constant(adder.inputs[index]) if adder is not None else None
    data, weight = _quantizer_above(node.inputs[0], produced_by), produced_by.get(node.inputs[1])  # type: ignore[arg-type]
    if (
        adder is None
        or bias is None
        or data is None
        or weight is None
        or data.axis is not None
        or bias.dtype != np.float32
    ):
        return
    scale = np.asarray(data.scales.reshape(()) * weight.scales, np.float32)
    codes = np.rint(bias.astype(np.float64) / scale)
    if np.abs(codes).max(initial=0) > LARGEST:
        worst = int(np.abs(codes).argmax())
        steps = np.broadcast_to(scale, bias.shape).reshape(-1)
        raise InputError(
            f"{node.op_type} {node.name!r}: bias {bias.reshape(-1)[worst]:.3g} of channel {worst} does not fit int32 at scale "
            f"{steps[worst]:.3g}; train again, or give this node wider ranges"
        )
    adder.replace_input_with(index, _dequantized(graph, str(node.name), codes.astype(np.int32), scale))


def _bias_input(node: ir.Node) -> tuple[ir.Node | None, int]:
    """The node that adds the bias, and at which input: the node itself, or the Add behind a MatMul."""
    if node.op_type in ("Conv", "Gemm"):
        return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else (None, 0)
    uses = list(node.outputs[0].uses()) if node.op_type == "MatMul" else []
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None, 0
    index = 1 - uses[0].idx
    bias = constant(uses[0].node.inputs[index])
    return (uses[0].node, index) if bias is not None and bias.ndim == 1 else (None, 0)


def _quantizer_above(value: ir.Value | None, produced_by: dict[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer whose scale `value` has: its producer, or the one above data movement."""
    while value is not None and value not in produced_by:
        node = value.producer()
        value = None if node is None else moved(node)
    return None if value is None else produced_by[value]


def _dequantized(graph: ir.Graph, stem: str, codes: NDArray[np.int32], scale: NDArray[np.float32]) -> ir.Value:
    axis = {} if scale.ndim == 0 else {"axis": codes.ndim - 1}
    parts = {"quantized": codes, "scale": scale, "zero_point": np.zeros(scale.shape, np.int32)}
    name = fresh_name(graph, f"{stem}_bias_DequantizeLinear")
    node = ir.node(
        "DequantizeLinear", [constant_value(graph, f"{stem}_bias_{k}", v) for k, v in parts.items()], axis, name=name
    )
    node.outputs[0].name = f"{name}_output"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
    graph.append(node)
    return node.outputs[0]
