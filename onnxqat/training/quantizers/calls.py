"""Replaces each quantizer of a Q/DQ model by a call of its trainable function (see `fakequant.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxqat.errors import UnsupportedModelError
from onnxqat.graph.biases import integer_biases
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, replace_value
from onnxqat.graph.io import opset
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import CODE_BOUNDS, FIXED_GRID, Quantizer, by_output, quantizers
from onnxqat.training.quantizers import fakequant
from onnxqat.training.quantizers.round_bias import call_rounding
from onnxqat.training.quantizers.zero_points import bounds as zero_point_bounds
from onnxqat.training.quantizers.zero_points import float_of

#: Bounds of the length of a sum in single precision: longer ones lose digits, shorter ones take time.
_SHORTEST, _LONGEST = 128, 512
_POLES = frozenset({"Atanh", "Div", "Exp", "Log", "Pow", "Reciprocal", "ReduceLogSum", "ReduceLogSumExp"})


@dataclass(frozen=True)
class Rectifier:
    """A Relu or Clip that a quantizer makes redundant.

    Attributes:
        node: the Relu or Clip.
        ceiling: its upper bound, infinity for Relu.
    """

    node: ir.Node
    ceiling: float

    @property
    def is_bounded(self) -> bool:
        """Whether it has an upper bound."""
        return math.isfinite(self.ceiling)


def call_quantizers(model: ir.Model) -> dict[str, tuple[float, float]]:
    """Replaces all quantizers, in place, and lets biases that become integers be read on their grid.

    A quantizer whose input already lies on its own grid (data movement over a value quantized with the same scale and zero
    point) is the identity, in value and in gradient, and is left out.

    Returns:
        Bounds by initializer name: of scales, above which a Clip that the quantizer has absorbed would cut its range; of zero
        points that are trained.
    """
    found = [quantizer for quantizer in quantizers(model) if not quantizer.is_given]
    call_rounding(model, integer_biases(model))
    outputs = by_output(found)
    identities = [q for q in found if _is_identity(q, outputs)]
    bounds: dict[str, tuple[float, float]] = {}
    calls: dict[ir.Node, ir.Value] = {}  # one call for all DequantizeLinear nodes that read the same codes
    for quantizer in found:
        codes = quantizer.nodes[-2] if len(quantizer.nodes) > 1 else quantizer.dequantize
        if quantizer in identities:
            replace_value(model.graph, quantizer.output, _source(quantizer))
        elif codes in calls:
            replace_value(model.graph, quantizer.output, calls[codes])
        else:
            rectifier = _rectifier(quantizer)
            calls[codes] = _replace(model, quantizer, rectifier)
            if rectifier is not None and rectifier.is_bounded:
                name = str(quantizer.scale.name)
                bound = rectifier.ceiling / (quantizer.qmax - quantizer.qmin)
                bounds[name] = (0.0, min(bounds.get(name, (0.0, np.inf))[1], bound))
            learned = float_of(model.graph, quantizer)
            if learned is not None:
                bounds[str(learned.name)] = zero_point_bounds(quantizer)
    _remove(model.graph, found)
    return bounds


def _is_identity(quantizer: Quantizer, outputs: dict[ir.Value, Quantizer]) -> bool:
    above = quantizer_above(quantizer.source, outputs)
    return above is not None and above.same_grid_key == quantizer.same_grid_key


def _rectifier(quantizer: Quantizer) -> Rectifier | None:
    """The Relu or Clip before the quantizer, if the quantizer gives the same values without it."""
    source = _source(quantizer)
    node = source.producer()
    only_user = len(source.uses()) == 1 and not source.is_graph_output()
    if node is None or not only_user or quantizer.axis is not None or int(quantizer.zero_points) != quantizer.qmin:
        return None
    if node.op_type == "Relu":
        return Rectifier(node, float("inf"))
    if node.op_type != "Clip":
        return None
    low, high = (constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    if low is None or float(low) != 0.0 or (high is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    ceiling = float("inf") if high is None else float(high)
    highest = float(quantizer.scales) * (quantizer.qmax - quantizer.qmin)
    return Rectifier(node, ceiling) if highest <= ceiling * (1 + 1e-6) else None


def _replace(model: ir.Model, quantizer: Quantizer, rectifier: Rectifier | None) -> ir.Value:
    graph = model.graph
    learned = float_of(graph, quantizer)
    variant = replace(_variant(quantizer, rectifier), learned=learned is not None)
    function = fakequant.function(variant, opset(model))
    model.functions[function.identifier()] = function
    inputs: list[ir.Value | None] = [
        _source(quantizer),
        quantizer.scale,
        quantizer.zero_point or _zeros(graph, quantizer, variant),
    ]
    if rectifier is not None:
        inputs[0] = rectifier.node.inputs[0]
    if rectifier is not None and rectifier.is_bounded:
        inputs.append(_ceiling(graph, rectifier.ceiling))
    if learned is not None:
        inputs[2] = learned
    if inputs[0] is not None and _may_be_infinite(inputs[0]):
        inputs[0] = _bounded(graph, quantizer.dequantize, inputs[0])
    call = ir.Node(fakequant.DOMAIN, variant.name, inputs, name=f"{quantizer.dequantize.name}_call")
    if FIXED_GRID in quantizer.dequantize.metadata_props:
        call.metadata_props[FIXED_GRID] = quantizer.dequantize.metadata_props[FIXED_GRID]
    output = call.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), quantizer.source.shape
    name = quantizer.output.name
    graph.insert_before(quantizer.dequantize, call)
    ir.convenience.replace_all_uses_with(quantizer.output, output, replace_graph_outputs=True)
    quantizer.output.name, output.name = f"{name}_replaced", name
    model.graph.opset_imports[fakequant.DOMAIN] = 1
    return output


def _source(quantizer: Quantizer) -> ir.Value:
    """Returns the value that the quantizer reads now; replacing a quantizer upstream changes it."""
    source = quantizer.nodes[0].inputs[0]
    assert source is not None
    return source


def _may_be_infinite(value: ir.Value) -> bool:
    """Whether an operator with poles, or an infinite constant, stands before the value and behind all other quantizers."""
    pending, seen = [value], set[ir.Node]()
    while pending:
        current = pending.pop()
        node, array = current.producer(), constant(current)
        if array is not None and array.dtype.kind == "f" and np.isinf(array).any():
            return True
        if node is None or node in seen or node.op_type == "DequantizeLinear" or fakequant.is_call(node):
            continue
        if node.op_type in _POLES and not _divides_by_constant(node):
            return True
        seen.add(node)
        pending += [value for value in node.inputs if value is not None]
    return False


def _divides_by_constant(node: ir.Node) -> bool:
    by = constant(node.inputs[1]) if node.op_type == "Div" else None
    return by is not None and bool((np.abs(by) > np.finfo(np.float32).tiny).all())


def _bounded(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """The value without infinities: codes are the same, but a quantizer's gradient would multiply them by 0."""
    most = np.finfo(np.float32).max
    low, high = (constant_value(graph, "onnxqat_bound", np.array(bound, np.float32)) for bound in (-most, most))
    clip = ir.node("Clip", [value, low, high], name=f"{before.name}_bound")
    clip.outputs[0].name = f"{value.name}_bounded_for_{before.name}"
    clip.outputs[0].type, clip.outputs[0].shape = value.type, value.shape
    graph.insert_before(before, clip)
    return clip.outputs[0]


def _ceiling(graph: ir.Graph, ceiling: float) -> ir.Value:
    name = f"onnxqat_ceiling_{ceiling:.9g}"
    if name in graph.initializers:
        return graph.initializers[name]
    return constant_value(graph, name, np.array(ceiling, np.float32))


def _variant(quantizer: Quantizer, rectifier: Rectifier | None) -> fakequant.Variant:
    dtype = ir.DataType.UINT8
    if quantizer.zero_point is not None:
        tensor = ir.convenience.get_const_tensor(quantizer.zero_point)
        assert tensor is not None
        dtype = tensor.dtype
    shape = quantizer.source.shape
    if quantizer.block:
        return _of_blocks(quantizer, dtype)
    rank = 0 if shape is not None and shape.rank() == 0 else None
    if quantizer.axis not in (None, 0):
        if shape is None:
            raise UnsupportedModelError(
                f"value {quantizer.source.name!r}: its rank is not known, so its per-channel scale cannot be trained; "
                "run onnx.shape_inference on the model"
            )
        rank = shape.rank()
    bounds = (quantizer.qmin, quantizer.qmax)
    stretch = _stretch(shape)
    rectified, bounded = rectifier is not None, rectifier is not None and rectifier.is_bounded
    return fakequant.Variant(dtype, bounds, CODE_BOUNDS[dtype], quantizer.axis, rank, rectified, bounded, stretch)


def _of_blocks(quantizer: Quantizer, dtype: ir.DataType) -> fakequant.Variant:
    shape, axis = quantizer.source.shape, quantizer.axis
    length = None if shape is None or shape.rank() > 2 or axis is None else shape[axis]
    if shape is None or not isinstance(length, int):
        raise UnsupportedModelError(
            f"{label(quantizer.dequantize)}: scales in blocks are trained for matrices of fixed size only; quantize it per tensor"
        )
    bounds, block = (quantizer.qmin, quantizer.qmax), quantizer.block
    return fakequant.Variant(dtype, bounds, CODE_BOUNDS[dtype], axis, shape.rank(), block=block, length=length)


def _stretch(shape: ir.Shape | None) -> int | None:
    """The longest piece of a row whose sum keeps its digits, where the length of rows is known and made up of such pieces."""
    sizes = [] if shape is None else [size for size in shape[1:] if isinstance(size, int)]
    row = math.prod(sizes)
    if shape is None or len(sizes) < len(shape) - 1 or row <= _LONGEST:
        return None
    return next((size for size in range(_LONGEST, _SHORTEST, -1) if row % size == 0), None)


def _zeros(graph: ir.Graph, quantizer: Quantizer, variant: fakequant.Variant) -> ir.Value:
    zeros = np.zeros(quantizer.scales.shape, variant.dtype.numpy())
    return constant_value(graph, "onnxqat_zero", zeros)


def _remove(graph: ir.Graph, found: list[Quantizer]) -> None:
    """Removes the quantizers' nodes and the activations they absorbed, from the end of the graph to its start."""
    for quantizer in reversed(found):
        source = _source(quantizer)
        before = source.producer()
        for node in reversed(quantizer.nodes):
            if node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
        unused = not source.uses() and not source.is_graph_output()
        if before is not None and before.graph is not None and unused and before.op_type in ("Relu", "Clip"):
            graph.remove(before, safe=True)
