"""Biases as int32 of scale sx · sw, so that the kernel adds them to its accumulator (Jacob et al. 2018, section 2.4)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name
from onnxqat.graph.movement import moved
from onnxqat.graph.qdq import Quantizer, constant

LARGEST = 2**31 - 1


def fold_bias(graph: ir.Graph, node: ir.Node, produced_by: dict[ir.Value, Quantizer]) -> None:
    """Gives a weighted node its bias as int32 codes behind a DequantizeLinear, its own even where the float bias was shared.

    Nothing happens where the node has no constant bias, or does not read integers on both sides.

    Raises:
        InputError: a code does not fit into int32, so the scales are too small for the bias.
    """
    found = _bias_input(node)
    data, weight = _quantizer_above(node.inputs[0], produced_by), produced_by.get(node.inputs[1])  # type: ignore[arg-type]
    if found is None or data is None or weight is None or not weight.is_weight or data.axis is not None:
        return
    adder, index, bias = found
    scale = np.asarray(data.scales.reshape(()) * weight.scales, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale that underflows to 0 is refused below
        codes = np.rint(bias.astype(np.float64) / scale)
    _check_fits(node, bias, codes, scale)
    adder.replace_input_with(index, _dequantized(graph, str(node.name), codes.astype(np.int32), scale))


def _check_fits(
    node: ir.Node, bias: NDArray[np.float32], codes: NDArray[np.float64], scale: NDArray[np.float32]
) -> None:
    """Refuses codes beyond int32; NaN is no smaller than the bound either."""
    fits = np.abs(codes) <= LARGEST
    if fits.all():
        return
    worst = tuple(int(i) for i in np.argwhere(~fits)[0])
    value, step = (float(np.broadcast_to(a, codes.shape)[worst]) for a in (bias, scale))
    raise InputError(
        f"{node.op_type} {node.name!r}: bias {value:.3g} of channel {worst[-1] if worst else 0} does not fit int32 at scale "
        f"{step:.3g}; train again, or give this node wider ranges"
    )


def _bias_input(node: ir.Node) -> tuple[ir.Node, int, NDArray[np.float32]] | None:
    """The node that adds the bias (itself, or the Add behind a MatMul), at which input, and the bias; None without one."""
    adder, index = node, 2
    if node.op_type == "MatMul":
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        adder, index = uses[0].node, 1 - uses[0].idx
    bias = constant(adder.inputs[index]) if len(adder.inputs) > index else None
    if bias is None or bias.dtype != np.float32 or (node.op_type == "MatMul" and bias.ndim != 1):
        return None
    return adder, index, bias


def _quantizer_above(value: ir.Value | None, produced_by: dict[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer whose scale `value` has: its producer, or the one above data movement."""
    while value is not None and value not in produced_by:
        node = value.producer()
        value = None if node is None else moved(node)
    return None if value is None else produced_by[value]


def _dequantized(graph: ir.Graph, stem: str, codes: NDArray[np.int32], scale: NDArray[np.float32]) -> ir.Value:
    axis = {} if scale.ndim == 0 else {"axis": codes.ndim - 1}
    parts = {"quantized": codes, "scale": scale}  # int32 codes have no zero point
    name = fresh_name(graph, f"{stem}_bias_dq")
    node = ir.node(
        "DequantizeLinear", [constant_value(graph, f"{stem}_bias_{k}", v) for k, v in parts.items()], axis, name=name
    )
    node.outputs[0].name = fresh_value_name(graph, name)
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
    graph.append(node)
    return node.outputs[0]
