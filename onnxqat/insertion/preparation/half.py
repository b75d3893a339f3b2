"""Models that compute in half precision, brought to float32: quantization starts from float32, and CPUs compute in it anyway."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

log = logging.getLogger(__name__)

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: Attributes that name the type of what a node makes.
_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type")


def float16_to_float32(model: ir.Model) -> None:
    """Gives every half-precision value type float32, in place, where the model computes in half precision at all.

    Weights that are stored so and cast to float32 before use need nothing: constant folding deals with them.
    """
    computed = {v.dtype for n in model.graph.all_nodes() if n.op_type not in ("Cast", "Constant") for v in n.outputs}
    computed.update(v.dtype for v in (*model.graph.inputs, *model.graph.outputs))
    found = computed & HALF
    if not found:
        return
    for graph in model.graphs():
        for value in [*graph.inputs, *graph.initializers.values()]:
            _widen(value)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _widen(value)
        for attribute in list(node.attributes.values()):
            _widen_attribute(node, attribute)
    log.warning("model converted from %s to float32", " and ".join(sorted(kind.name.lower() for kind in found if kind)))


def _widen(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype in HALF:
        value.const_value = _widened(value.const_value)
    if value.dtype in HALF:
        value.dtype = ir.DataType.FLOAT


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _widened(attribute.value))
    elif attribute.name in _TYPE_ATTRIBUTES and attribute.value in HALF:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
