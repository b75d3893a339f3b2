"""Weights as integers: the QuantizeLinear in front of a constant is carried out, its codes are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.edit import constant_value, fresh_name
from onnxqat.graph.qdq import Quantizer, constant
from onnxqat.numerics import quantize

#: Below this many elements the nodes that unpack a weight take more room than packing saves.
SMALLEST_PACKED = 4096


def fold_weight(graph: ir.Graph, quantizer: Quantizer) -> None:
    """Replaces a float weight and its QuantizeLinear (and Clip) by the codes; the DequantizeLinear stays.

    Raises:
        InputError: weight or scale is not finite, or a scale is not positive.
    """
    weight = constant(quantizer.source)
    assert weight is not None
    name = str(quantizer.source.name)
    _check(name, weight, quantizer.scales)
    codes = quantize(weight, quantizer.scales, quantizer.zero_points, quantizer.qmin, quantizer.qmax, quantizer.axis)
    dtype = np.int8 if quantizer.qmin < 0 else np.uint8
    if codes.size >= SMALLEST_PACKED and quantizer.bits <= 4:
        stored = _packed(graph, f"{name}_quantized", codes.astype(dtype), 2 if quantizer.bits <= 2 else 4)
    else:
        stored = constant_value(graph, f"{name}_quantized", codes.astype(dtype))
    quantizer.dequantize.replace_input_with(0, stored)


def _packed(graph: ir.Graph, name: str, codes: NDArray[np.integer[Any]], bits: int) -> ir.Value:
    """Stores several codes to a byte, and the nodes that unpack them: Cast → Gather from a table → Reshape.

    Every runtime computes these once, at load, and then has 8-bit weights, which its integer kernels take. int4 initializers
    would be the obvious form, but DequantizeLinear of int4 keeps convolutions in float in ONNX Runtime, and 1.19 has no
    Cast from int4.
    """
    per_byte = 8 // bits
    lowest = -(2 ** (bits - 1)) if codes.dtype == np.int8 else 0
    offset = (codes.reshape(-1).astype(np.int32) - lowest).astype(np.uint8)
    offset = np.concatenate([offset, np.zeros(-len(offset) % per_byte, np.uint8)]).reshape(-1, per_byte)
    shifts = bits * np.arange(per_byte, dtype=np.uint8)
    packed = np.bitwise_or.reduce(offset << shifts, axis=1).astype(np.uint8)
    table = (((np.arange(256)[:, None] >> shifts) & (2**bits - 1)) + lowest).astype(codes.dtype)
    nodes = [ir.node("Cast", [constant_value(graph, f"{name}_packed", packed)], {"to": ir.DataType.INT32.value})]
    nodes.append(ir.node("Gather", [_table(graph, table, bits), nodes[0].outputs[0]]))
    if codes.size % per_byte:
        flat = ir.node("Reshape", [nodes[-1].outputs[0], constant_value(graph, "flat_shape", np.array([-1], np.int64))])
        end = constant_value(graph, f"{name}_size", np.array([codes.size], np.int64))
        start = constant_value(graph, f"{name}_start", np.array([0], np.int64))
        nodes += [flat, ir.node("Slice", [flat.outputs[0], start, end])]
    shape = constant_value(graph, f"{name}_shape", np.array(codes.shape, np.int64))
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape]))
    for node in nodes:
        node.name = fresh_name(graph, f"{name}_{node.op_type}")
        node.outputs[0].name = f"{node.name}_output"
    nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.from_numpy(codes.dtype))
    nodes[-1].outputs[0].shape = ir.Shape(codes.shape)
    graph.extend(nodes)
    return nodes[-1].outputs[0]


def _table(graph: ir.Graph, table: NDArray[np.integer[Any]], bits: int) -> ir.Value:
    name = f"unpack_{table.dtype}_{bits}bit"
    return graph.initializers[name] if name in graph.initializers else constant_value(graph, name, table)


def _check(name: str, weight: NDArray[np.generic], scales: NDArray[np.float32]) -> None:
    if not np.isfinite(weight).all():
        raise InputError(f"weight {name!r}: holds NaN or infinity; train again from a good state")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise InputError(f"weight {name!r}: has a scale that is not positive; train again with a lower learning rate")
