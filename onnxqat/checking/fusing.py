"""Rules about kernels that a runtime makes of several nodes: what would split them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.checking.findings import AGAIN, Finding
from onnxqat.checking.judged import Judged
from onnxqat.checking.structure import is_integer, sources
from onnxqat.graph.edit import sole_user
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Quantizer


def several_quantizers(judged: Judged) -> Iterator[Finding]:
    """A value is quantized once, before it branches."""
    for value in _values(judged):
        grids = {
            judged.quantized[out].same_grid_key
            for user, _ in value.uses()
            if user.op_type == "QuantizeLinear"
            for out in _dequantized(judged, user)
        }
        if len(grids) > 1 and value not in judged.quantized:
            producer = value.producer()
            where = f"input {value.name!r}" if producer is None else label(producer)
            fact = f"its output is quantized {len(grids)} times, with a conversion each"
            yield Finding("split", where, fact, "quantize it once, before it branches")


def inside_fused(judged: Judged) -> Iterator[Finding]:
    """No pair stands between a layer and the activation that its kernel takes in."""
    for node in judged.weighted:
        pair = _pair_behind(judged, judged.behind(node)) if judged.reads_integers(node) else None
        user = None if pair is None else sole_user(pair.output)
        if (
            user is not None
            and user.op_type in judged.target.operators.absorbs - judged.target.ranges.fixed.keys()
            and not judged.target.placement.whole
        ):
            fact = f"a pair stands between it and {label(user)}, which would be one kernel"
            yield Finding("split", label(node), fact, f"leave out the pair, or place one behind {label(user)}")


def residual_adds(judged: Judged) -> Iterator[Finding]:
    """Of a residual Add, the side that a kernel adds itself has no pair, and the other has one."""
    target = judged.target
    if not target.placement.accumulates:
        return
    layers = {judged.behind(node): node for node in judged.weighted if node.op_type in target.placement.accumulates}
    for add in judged.model.graph:
        if add.op_type != "Add" or len({str(value.shape) for value in add.inputs if value is not None}) != 1:
            continue
        bare = [v for v in add.inputs if v in layers and sole_user(v) is add and judged.reads_integers(layers[v])]
        if bare and target.placement.accumulates_one:
            others = [v for v in add.inputs if v is not bare[0]]
            if not all(is_integer(value, judged.quantized, target) for value in others):
                fact = f"its short cut {others[0].name!r} is float, so that {label(layers[bare[0]])} writes float"  # type: ignore[union-attr]
                yield Finding("split", label(add), fact, "place a pair at the short cut")
        elif not bare:
            yield from _paired_sides(judged, add, layers)


def _paired_sides(judged: Judged, add: ir.Node, layers: dict[ir.Value, ir.Node]) -> Iterator[Finding]:
    """An Add whose sides both have a pair, one of them behind a layer whose kernel would add."""
    pairs = [judged.quantized.get(value) for value in add.inputs if value is not None]
    for pair in pairs if all(pair is not None for pair in pairs) else []:
        layer = None if pair is None else layers.get(pair.source)
        if pair is None or layer is None or sole_user(pair.output) is not add or not judged.reads_integers(layer):
            continue
        fact = f"a pair stands between it and {label(layer)}, whose kernel would add it"
        yield Finding("split", label(add), fact, "quantize the short cut alone")
        return


def joined_scales(judged: Judged) -> Iterator[Finding]:
    """Inputs of a Concat have one scale."""
    for node, pairs in _joins(judged):
        quantized = [pair for pair in pairs if pair is not None]
        grids = {(pair.scales.tobytes(), pair.zero_points.tobytes()) for pair in quantized}
        if quantized and (len(grids) > 1 or len(quantized) < len(pairs)):
            fact = (
                "its inputs have several scales"
                if len(grids) > 1
                else "some of its inputs are float, and some integers"
            )
            yield Finding("split", label(node), fact, "give all inputs one scale")


def moved_signs(judged: Judged) -> Iterator[Finding]:
    """Inputs of data movement and of Concats have unsigned codes where the runtime loses zero points of signed ones."""
    target, unsigned = judged.target, judged.target.activations.unsigned_beside
    beside = next((node for node in judged.model.graph.all_nodes() if node.op_type in unsigned), None)
    if beside is None:
        return
    for node in judged.model.graph:
        pairs = [judged.quantized.get(value) for value in node.inputs if value is not None]
        signed = [pair for pair in pairs if pair is not None and judged.is_activation(pair) and pair.is_signed]
        if node.op_type in target.operators.moves | target.operators.joins and signed:
            fact = f"it reads int8 codes beside {label(beside)}, and on x86 without AMX layers behind it compute other numbers"
            yield Finding("refused", label(node), fact, AGAIN.format(target.name))


def _joins(judged: Judged) -> Iterator[tuple[ir.Node, list[Quantizer | None]]]:
    """Nodes that join values, each with the quantizers that these come from; None: float."""
    for node in judged.model.graph:
        if node.op_type in judged.target.operators.joins:
            read = [value for value in node.inputs if value is not None]
            roots = [root for value in read for root in sources(value, judged.quantized, judged.target)]
            yield node, [judged.quantized.get(root) for root in roots]


def _values(judged: Judged) -> Iterator[ir.Value]:
    yield from judged.model.graph.inputs
    for node in judged.model.graph:
        yield from node.outputs


def _dequantized(judged: Judged, quantize: ir.Node) -> list[ir.Value]:
    """Values that come out of the pairs of a QuantizeLinear."""
    found = [user for user, _ in quantize.outputs[0].uses()]
    found += [user for clip in found if clip.op_type == "Clip" for user, _ in clip.outputs[0].uses()]
    return [user.outputs[0] for user in found if user.outputs[0] in judged.quantized]


def _pair_behind(judged: Judged, value: ir.Value) -> Quantizer | None:
    """The one pair that reads a value, where nothing else does."""
    user = sole_user(value)
    outputs = _dequantized(judged, user) if user is not None and user.op_type == "QuantizeLinear" else []
    return judged.quantized[outputs[0]] if len(outputs) == 1 else None
