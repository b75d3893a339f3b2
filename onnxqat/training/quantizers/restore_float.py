"""Gives stored integers their float form back: models of other quantizers keep weights and biases as codes."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value
from onnxqat.graph.qdq import Quantizer, quantizers

log = logging.getLogger(__name__)


def restore_float(model: ir.Model) -> None:
    """Turns integer initializers into float ones, in place, so that they can be trained.

    A weight w = (q - zero point) · scale gets a QuantizeLinear that gives back exactly its codes. An int32 bias becomes
    a plain float one: its scale is the product of two others, and follows them when the model is folded.
    """
    for given in [q for q in quantizers(model) if q.is_given]:
        _own_scale(model.graph, given)
    stored = [q for q in quantizers(model) if q.quantize is None and constant(q.source) is not None]
    for quantizer in stored:
        if constant(quantizer.source).dtype == np.int32:  # type: ignore[union-attr]
            _restore_bias(model.graph, quantizer)
        else:
            _restore_weight(model.graph, quantizer)
    if stored:
        log.info("gave %d integer initializers their float form back", len(stored))


def _own_scale(graph: ir.Graph, quantizer: Quantizer) -> None:
    """A copy of the scale for codes that come from outside or from a table: it says what they mean, and is not trained."""
    if len(quantizer.scale.uses()) > 1:
        copy = constant_value(graph, f"{quantizer.scale.name}_of_{quantizer.output.name}", quantizer.scales)
        quantizer.dequantize.replace_input_with(1, copy)


def _restore_weight(graph: ir.Graph, quantizer: Quantizer) -> None:
    node = quantizer.dequantize
    weight = _float_form(graph, quantizer)
    attributes = {} if quantizer.axis is None else {"axis": quantizer.axis}
    if quantizer.block:
        attributes["block_size"] = quantizer.block
    if quantizer.zero_point is None:  # without one, QuantizeLinear writes uint8
        zeros = np.zeros(quantizer.scales.shape, quantizer.source.dtype.numpy())  # type: ignore[union-attr]
        node.resize_inputs(3)
        node.replace_input_with(2, constant_value(graph, f"{weight.name}_zero_point", zeros))
    inputs = [weight, *node.inputs[1:]]
    quantize = ir.node("QuantizeLinear", inputs, attributes, name=f"{weight.name}_QuantizeLinear")
    codes = quantize.outputs[0]
    codes.name, codes.type, codes.shape = f"{weight.name}_codes", quantizer.source.type, quantizer.source.shape
    graph.insert_before(node, quantize)
    node.replace_input_with(0, codes)
    _drop(graph, quantizer.source)


def _restore_bias(graph: ir.Graph, quantizer: Quantizer) -> None:
    bias = _float_form(graph, quantizer)
    ir.convenience.replace_all_uses_with(quantizer.output, bias)
    graph.remove(quantizer.dequantize, safe=True)
    for value in (quantizer.source, quantizer.scale, quantizer.zero_point):
        _drop(graph, value)


def _float_form(graph: ir.Graph, quantizer: Quantizer) -> ir.Value:
    name = str(quantizer.source.name).removesuffix("_quantized")
    return constant_value(graph, name, quantizer.dequantized)


def _drop(graph: ir.Graph, value: ir.Value | None) -> None:
    if value is not None and value.name in graph.initializers and not value.uses():
        del graph.initializers[str(value.name)]
