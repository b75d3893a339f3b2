"""Weights as integers: the QuantizeLinear in front of a constant is carried out, its codes are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, shared_constant
from onnxqat.graph.qdq import Quantizer

#: Below this many elements the nodes that unpack a weight take more room than packing saves.
SMALLEST_PACKED = 4096
#: The largest int8 code of a pair of which no sum of two products leaves 16 bits.
SAFE_CODE = 64


def fold_weight(graph: ir.Graph, quantizer: Quantizer, *, packs: bool = True) -> None:
    """Replaces a float weight and its QuantizeLinear (and Clip) by the codes; the DequantizeLinear stays.

    Args:
        graph: the model's graph.
        quantizer: that of the weight.
        packs: whether codes of 4 bits and fewer are stored packed.

    Raises:
        InputError: the weight is not finite.
    """
    name, codes = str(quantizer.source.name), _codes(quantizer)
    if quantizer.block:
        stored = constant_value(graph, f"{name}_quantized", codes.astype(quantizer.dtype.numpy()))
        quantizer.dequantize.replace_input_with(0, stored)
        return
    dtype = quantizer.dtype.numpy()
    if packs and codes.size >= SMALLEST_PACKED and quantizer.bits <= 4:
        stored = _packed(graph, f"{name}_quantized", codes.astype(dtype), 2 if quantizer.bits == 2 else 4)
    else:
        stored = constant_value(graph, f"{name}_quantized", codes.astype(dtype))
    quantizer.dequantize.replace_input_with(0, stored)


def round_weight(graph: ir.Graph, quantizer: Quantizer) -> None:
    """Replaces a float weight by the numbers that its codes stand for; a Clip of codes then changes nothing, and is dropped.

    Raises:
        InputError: the weight is not finite.
    """
    _codes(quantizer)
    assert quantizer.quantize is not None
    rounded = constant_value(graph, str(quantizer.source.name), quantizer.dequantized)
    quantizer.quantize.replace_input_with(0, rounded)
    quantizer.dequantize.replace_input_with(0, quantizer.quantize.outputs[0])


def _codes(quantizer: Quantizer) -> NDArray[np.int32]:
    weight = constant(quantizer.source)
    if weight is None or not np.isfinite(weight).all():
        raise InputError(f"weight {quantizer.source.name!r}: holds NaN or infinity; train again from a good state")
    return quantizer.codes


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
    unpack = shared_constant(graph, f"unpack_{table.dtype}_{bits}bit", table)
    nodes.append(ir.node("Gather", [unpack, nodes[0].outputs[0]]))
    if codes.size % per_byte:
        flat = ir.node(
            "Reshape", [nodes[-1].outputs[0], shared_constant(graph, "flat_shape", np.array([-1], np.int64))]
        )
        end = constant_value(graph, f"{name}_size", np.array([codes.size], np.int64))
        start = constant_value(graph, f"{name}_start", np.array([0], np.int64))
        nodes += [flat, ir.node("Slice", [flat.outputs[0], start, end])]
    shape = constant_value(graph, f"{name}_shape", np.array(codes.shape, np.int64))
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape]))
    for node in nodes:
        node.name = fresh_name(graph, f"{name}_{node.op_type}")
        node.outputs[0].name = fresh_value_name(graph, f"{node.name}_output")
    nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.from_numpy(codes.dtype))
    nodes[-1].outputs[0].shape = ir.Shape(codes.shape)
    graph.extend(nodes)
    return nodes[-1].outputs[0]


def separate_readers(graph: ir.Graph, quantizer: Quantizer) -> None:
    """Gives each node that reads an int8 weight its own codes and zero point, and one that reads blocks its own scales too.

    `session.x64quantprecision` rewrites the former to uint8 node by node, and ONNX Runtime 1.32 fails at the second node that
    reads the same ones. It leaves codes alone that are no larger than `SAFE_CODE`. It fuses no blocks that two nodes read.
    """
    dequantize = quantizer.dequantize
    if not (quantizer.block or _may_be_rewritten(quantizer)):
        return
    kept = None if quantizer.block else quantizer.scale
    for index, value in enumerate(dequantize.inputs):  # other quantizers may read the same
        if value is not None and value is not kept and len(value.uses()) > 1:
            dequantize.replace_input_with(index, _copy(graph, value))
    for use in list(quantizer.output.uses())[1:]:
        inputs = [value if value is None or value is kept else _copy(graph, value) for value in dequantize.inputs]
        name = fresh_name(graph, str(dequantize.name))
        own = ir.Node("", "DequantizeLinear", inputs, dequantize.attributes.values(), name=name)
        own.outputs[0].name = fresh_value_name(graph, name)
        own.outputs[0].type, own.outputs[0].shape = quantizer.output.type, quantizer.output.shape
        graph.insert_after(dequantize, own)
        use.node.replace_input_with(use.idx, own.outputs[0])


def _may_be_rewritten(quantizer: Quantizer) -> bool:
    codes = constant(quantizer.dequantize.inputs[0])
    return (
        codes is not None and codes.dtype == np.int8 and bool(np.abs(codes.astype(np.int16)).max(initial=0) > SAFE_CODE)
    )


def _copy(graph: ir.Graph, value: ir.Value) -> ir.Value:
    array = constant(value)
    assert array is not None
    return constant_value(graph, str(value.name), array)


def check_scale(quantizer: Quantizer) -> None:
    """Raises InputError where a quantizer's scale is not a positive number."""
    if not (np.isfinite(quantizer.scales).all() and (quantizer.scales > 0).all()):
        raise InputError(
            f"scale {quantizer.scale.name!r} of {quantizer.source.name!r}: is not a positive number everywhere; "
            "train again with a lower learning rate"
        )
