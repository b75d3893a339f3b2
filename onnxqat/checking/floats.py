"""Rules about nodes: what the runtime does not load, and what does not run on integers."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.checking.findings import Finding
from onnxqat.checking.judged import Judged
from onnxqat.checking.structure import is_integer
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import sole_user
from onnxqat.graph.movement import MOVEMENT
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Quantizer
from onnxqat.graph.sizes import fixed_sizes, free_sizes
from onnxqat.targets import Target

_SILENT = MOVEMENT | {
    "QuantizeLinear",
    "DequantizeLinear",
    "Clip",
    "Relu",
    "Cast",
    "Constant",
    "Shape",
    "Dropout",
    "Max",
}
#: A bias scale this far from that of the products is refused by ONNX Runtime 1.32.
_BIAS_TOLERANCE = 0.01


def refusals(model: ir.Model, target: Target) -> Iterator[Finding]:
    """Reasons that keep the runtime from loading the model, whatever its quantizers."""
    for name, value, axis in free_sizes(model.graph) if target.limits.static else ():
        if name not in fixed_sizes(model):
            fact = f"size {name!r} of axis {axis} is free, and {target.title} takes fixed sizes only"
            yield Finding("refused", f"input {value.name!r}", fact, f"fix it: insert with --fix-input '{name}=1'")
    for node in model.graph:
        if fact := target.limits.refusal(node):
            *facts, remedy = fact.split("; ")
            yield Finding("refused", label(node), "; ".join(facts) or remedy, remedy if facts else "")


def bias_scales(judged: Judged) -> Iterator[Finding]:
    """An int32 bias has the scale of the products that it is added to."""
    if not judged.target.biases.integer or judged.target.placement.whole:
        return
    for node in judged.weighted:
        bias = judged.quantized.get(node.inputs[2]) if len(node.inputs) > 2 else None  # type: ignore[arg-type]
        data, weight = (judged.quantized.get(value) for value in node.inputs[:2])  # type: ignore[arg-type]
        if bias is None or data is None or weight is None or data.axis is not None:
            continue
        product = data.scales.reshape(()) * weight.scales
        if product.size not in (1, bias.scales.size) and bias.scales.size != 1:
            continue
        off = float(abs(bias.scales / product - 1).max())
        if off > _BIAS_TOLERANCE:
            fact = f"the scale of its bias is not input scale times weight scale (off by up to {off:.1%})"
            yield Finding("refused", label(node), fact, "store the bias on that scale")


def layers_in_float(judged: Judged) -> Iterator[Finding]:
    """Layers with a weight, and nodes that `insert` left in float, with its reason."""
    weighted = set(judged.weighted)
    for node in judged.model.graph:
        if node in weighted:
            yield from _layer_in_float(judged, node)
        elif (why := judged.purpose(node)) and node.op_type not in _SILENT:
            yield Finding("float", label(node), why)


def _layer_in_float(judged: Judged, node: ir.Node) -> Iterator[Finding]:
    target, weight = judged.target, judged.weight_of(node)
    if judged.reads_integers(node) or (isinstance(weight, Quantizer) and (target.weights.only or weight.block)):
        return
    why = judged.purpose(node) or target.limits.too_small(node)
    if why:
        yield Finding("float", label(node), why)
        return
    sides = list(zip(("data", "weight"), node.inputs, strict=False))
    if target.weights.only:
        sides = sides[1:]
    else:
        sides = [(side, value) for side, value in sides if not is_integer(value, judged.quantized, target)]
    bare = " and ".join(f"{side} {value.name!r}" for side, value in sides if value is not None)
    yield Finding("float", label(node), f"reads {bare} in float", "quantize it")


def values_in_float(judged: Judged) -> Iterator[Finding]:
    """Float values where all are to be integers: what reads them, or writes them, runs in float or on the CPU."""
    if not judged.target.placement.whole:
        return
    taken = judged.target.operators.kernels | judged.target.operators.moves
    nodes = [
        node for node in judged.model.graph if node.op_type in taken and node.outputs[0].dtype == ir.DataType.FLOAT
    ]
    for node in nodes:
        if judged.is_bias_of_product(node) or judged.purpose(node):
            continue
        bare = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT and v not in judged.quantized]
        computed = [v for v in bare if constant(v) is None]
        if computed:
            fact = f"reads {computed[0].name!r}, which has no pair, and so runs in float"
            yield Finding("split", label(node), fact, "place a pair at every value")
        elif not _ends_in_pair(judged, node):
            yield Finding(
                "split", label(node), "no pair stands behind it, so that it runs in float", "place one behind it"
            )


def _ends_in_pair(judged: Judged, node: ir.Node) -> bool:
    user = sole_user(judged.behind(node))
    return user is not None and user.op_type == "QuantizeLinear"
