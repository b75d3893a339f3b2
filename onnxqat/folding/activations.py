"""Relu and Clip in front of a quantizer, carried out on its integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, shared_code
from onnxqat.graph.qdq import WIDE, Quantizer
from onnxqat.graph.without import ABSORBED, FREE, absorbed
from onnxqat.numerics import quantize


def fold_activation(graph: ir.Graph, quantizer: Quantizer, *, clips_codes: bool = True, again: bool = False) -> None:
    """Replaces a Relu or Clip that only this quantizer reads by bounds on the codes, if they do not end there anyway.

    Where the target does not clip codes, and for codes of 16 bits, which ONNX Runtime does not clip, the bounds stand as a Clip
    of floats between two pairs of the same grid.

    Exact, because QuantizeLinear is monotone: Q(clip(x, a, b)) = clip(Q(x), Q(a), Q(b)). ONNX Runtime absorbs a float Clip only
    if it covers the whole range of the integer type, which codes below 8 bits and trained scales do not keep to.

    Args:
        graph: the graph.
        quantizer: a quantizer of activations.
        clips_codes: whether the target clips codes.
        again: whether the model has been folded before, and so says what was left to its quantizers.
    """
    qmin, qmax = quantizer.qmin, quantizer.qmax
    bounds = FREE
    while (found := _bounded(quantizer)) is not None:
        node, low, high = found
        bounds = max(bounds[0], low), min(bounds[1], high)
        qmin, qmax = max(qmin, _code(quantizer, low)), min(qmax, _code(quantizer, high))
        quantizer.nodes[0].replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)
    if (qmin, qmax) != (quantizer.qmin, quantizer.qmax):
        if clips_codes and quantizer.bits < WIDE:
            _clip_codes(graph, quantizer, qmin, qmax)
        else:
            _clip_between_pairs(graph, quantizer, bounds)
    is_new = any(map(np.isfinite, bounds)) or not again
    if quantizer.quantize is not None and is_new and absorbed(quantizer, ours=True) != bounds:
        quantizer.quantize.metadata_props[ABSORBED] = f"{bounds[0]:.9g} {bounds[1]:.9g}"


def share_zero_points(found: Iterable[Quantizer]) -> None:
    """Lets equal per-tensor zero points be one initializer: in a small net, one each would be a hundredth of the file.

    Not those of weights (see `weights.separate_readers`).
    """
    for quantizer in found:
        if quantizer.is_weight:
            continue
        zero_point, graph = quantizer.zero_point, quantizer.dequantize.graph
        codes = None if zero_point is None else constant(zero_point)
        if codes is None or codes.ndim or not isinstance(graph, ir.Graph):
            continue
        shared = shared_code(graph, codes)
        for node in (quantizer.quantize, quantizer.dequantize):
            if node is not None and len(node.inputs) > 2:
                node.replace_input_with(2, shared)


def _bounded(quantizer: Quantizer) -> tuple[ir.Node, float, float] | None:
    """The Relu or Clip that only this quantizer reads, and its bounds; None where there is none, or it must stay."""
    quantize_node = quantizer.quantize
    if quantize_node is None or quantizer.axis is not None or len(quantize_node.outputs[0].uses()) != 1:
        return None
    value = quantize_node.inputs[0]
    node = None if value is None else value.producer()
    if value is None or node is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    bounds = None if _reads_quantizer(node) else _bounds(node)
    return None if bounds is None or bounds[0] > bounds[1] else (node, *bounds)


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """Lowest and highest value of a Relu or Clip; None for other nodes, and where they are computed at run time."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = [float("-inf"), float("inf")]
    for index, given in enumerate(node.inputs[1:]):
        array = constant(given)
        if given is not None and (array is None or array.dtype != np.float32):
            return None
        bounds[index] = bounds[index] if array is None else float(array.item())
    return bounds[0], bounds[1]


def _reads_quantizer(node: ir.Node) -> bool:
    """Whether a pair stands before it: ONNX Runtime merges two pairs in a row into one of another scale."""
    data = node.inputs[0]
    above = None if data is None else data.producer()
    return above is not None and above.op_type == "DequantizeLinear"


def _code(quantizer: Quantizer, limit: float) -> int:
    codes = quantize(
        np.asarray(limit, np.float32), quantizer.scales, quantizer.zero_points, quantizer.qmin, quantizer.qmax
    )
    return int(codes)


def _clip_between_pairs(graph: ir.Graph, quantizer: Quantizer, bounds: tuple[float, float]) -> None:
    """Puts a pair and a Clip in front of the quantizer, which gives the same codes as one of them clipped."""
    quantize_node, value = quantizer.nodes[0], quantizer.nodes[0].inputs[0]
    assert value is not None
    grid = quantize_node.inputs[1:]
    limits = [
        None if np.isinf(bound) else constant_value(graph, f"{quantize_node.name}_bound", np.asarray(bound, np.float32))
        for bound in bounds
    ]
    first = ir.node("QuantizeLinear", [value, *grid])
    back = ir.node("DequantizeLinear", [first.outputs[0], *grid])
    clip = ir.node("Clip", [back.outputs[0], *limits])
    first.outputs[0].type, first.outputs[0].shape = quantize_node.outputs[0].type, value.shape
    for node in (first, back, clip):
        node.name = fresh_name(graph, f"{quantize_node.name}_{node.op_type}")
        node.outputs[0].name = fresh_value_name(graph, f"{node.name}_output")
        if node is not first:
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    quantize_node.replace_input_with(0, clip.outputs[0])
    graph.insert_before(quantize_node, [first, back, clip])


def _clip_codes(graph: ir.Graph, quantizer: Quantizer, qmin: int, qmax: int) -> None:
    """Bounds the codes to [qmin, qmax] by an integer Clip, the quantizer's own or a new one."""
    codes = quantizer.dequantize.inputs[0]
    assert quantizer.quantize is not None
    assert codes is not None
    dtype = np.int8 if quantizer.qmin < 0 else np.uint8
    bounds = [shared_code(graph, np.asarray(bound, dtype)) for bound in (qmin, qmax)]
    if quantizer.clip is not None:
        for index, bound in enumerate(bounds, start=1):
            quantizer.clip.replace_input_with(index, bound)
        return
    clip = ir.node("Clip", [codes, *bounds], name=fresh_name(graph, f"{quantizer.dequantize.name}_Clip"))
    clip.outputs[0].name = fresh_value_name(graph, f"{clip.name}_output")
    clip.outputs[0].type, clip.outputs[0].shape = codes.type, codes.shape
    quantizer.dequantize.replace_input_with(0, clip.outputs[0])
    graph.insert_before(quantizer.dequantize, clip)
