"""The float model behind a quantized one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.graph import io, qdq
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value
from onnxqat.graph.movement import moved

#: Key of a QuantizeLinear's metadata: lower and upper bound of the activations that it has absorbed, where its codes do not tell.
ABSORBED = "onnxqat.absorbed"
#: Key of a model's metadata under which `insert` leaves the target.
TARGET = "onnxqat.target"
#: Key under which `fold` leaves that activations may be left to quantizers.
DEPLOYED = "onnxqat.deployed"
#: Key under which a model says what changed its weights or biases for its quantizers: without them it is not the float model.
ADAPTED = "onnxqat.adapted"
#: What is there after `reconstruct`.
RECONSTRUCTION = "reconstruction"
#: Operators whose results are bounded by themselves, or that a runtime joins with no activation.
_BOUNDED = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "Tanh", "DequantizeLinear"})

Bounds = tuple[float, float]
FREE: Bounds = -np.inf, np.inf


def without_quantizers(model: ir.Model, chosen: Callable[[qdq.Quantizer], bool] = lambda _: True) -> ir.Model:
    """A copy without its quantizers, or without chosen ones, stored codes back in float; outputs keep their names.

    Where a quantizer stands for a Relu or Clip, whose work its codes do, the activation is restored.
    """
    model = io.load(model)
    ours = TARGET in model.metadata_props
    whole = ours and DEPLOYED not in model.metadata_props
    # last ones first: one that narrows another reads that one's output
    for quantizer in reversed([one for one in qdq.quantizers(model) if chosen(one)]):
        _take_out(model.graph, quantizer, FREE if whole else absorbed(quantizer, ours=ours))
    passes.RemoveUnusedNodesPass()(model)
    return model


def absorbed(quantizer: qdq.Quantizer, *, ours: bool) -> Bounds:
    """Bounds of the activation whose work a quantizer does: its values would lie beyond them without it.

    Codes that begin at 0 are those of a Relu. Our `fold` writes down where it is otherwise; of models that it did not make it is
    not known which activations were left out, so that they keep the range of their codes.
    """
    node = quantizer.quantize
    source = None if node is None else node.inputs[0]
    producer = None if source is None else source.producer()
    if node is not None and ABSORBED in node.metadata_props:
        below, above = node.metadata_props[ABSORBED].split()
        return float(below), float(above)
    if producer is None or producer.op_type in _BOUNDED or moved(producer) is not None or quantizer.axis is not None:
        return FREE
    scale, zero_point = float(quantizer.scales.reshape(())), int(quantizer.zero_points.reshape(()))
    from_zero = zero_point == quantizer.qmin
    if ours:
        return (0.0, np.inf) if from_zero else FREE
    # half a step more where the ends of the range were rounded to codes
    low, high = quantizer.qmin - zero_point, quantizer.qmax - zero_point
    return (0.0, scale * high) if from_zero else (scale * (low - 0.5), scale * (high + 0.5))


def _take_out(graph: ir.Graph, quantizer: qdq.Quantizer, bounds: Bounds) -> None:
    replacement = quantizer.source
    if quantizer.quantize is None:
        if not quantizer.is_weight:
            return
        replacement = constant_value(graph, f"{quantizer.source.name}_float", quantizer.dequantized)
    elif any(map(np.isfinite, bounds)):
        replacement = _bounded(graph, quantizer, bounds)
    replace_value(graph, quantizer.output, replacement)


def _bounded(graph: ir.Graph, quantizer: qdq.Quantizer, bounds: Bounds) -> ir.Value:
    """The quantizer's source behind a Relu or Clip."""
    source = quantizer.source
    if bounds == (0.0, np.inf):
        node = ir.node("Relu", [source])
    else:
        limits = [
            constant_value(graph, f"{source.name}_{side}", np.asarray(bound, np.float32))
            for side, bound in zip(("low", "high"), bounds, strict=True)
        ]
        node = ir.node("Clip", [source, *limits])
    node.name = fresh_name(graph, f"{source.name}_{node.op_type}")
    result = node.outputs[0]
    result.name, result.type, result.shape = fresh_value_name(graph, str(node.name)), source.type, source.shape
    graph.insert_before(quantizer.dequantize, node)
    return result
