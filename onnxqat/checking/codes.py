"""Rules about single quantizers: types of codes, zero points, scales, axes, blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxqat.checking.findings import AGAIN, Finding, Kind
from onnxqat.checking.judged import Judged
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Quantizer


def codes(judged: Judged) -> Iterator[Finding]:
    """Each quantizer by itself."""
    for quantizer in judged.quantized.values():
        for kind, fact, remedy in _of_one(judged, quantizer):
            node = quantizer.quantize if quantizer.quantize is not None else quantizer.dequantize
            yield Finding(kind, label(node), fact, remedy.format(judged.target.name))


def _of_one(judged: Judged, quantizer: Quantizer) -> Iterator[tuple[Kind, str, str]]:
    target, scales = judged.target, quantizer.scales
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        yield (
            "refused",
            f"scale {quantizer.scale.name!r} is not a positive number everywhere",
            "train or calibrate again",
        )
    if quantizer.clip is not None and not target.limits.clips_codes:
        yield "refused", "a Clip of integers stands between its nodes", "fold the model, and use 8 bits for activations"
    if target.limits.symmetric_only and quantizer.zero_points.any():
        yield "refused", f"its zero point is not 0, as {target.title} demands", AGAIN
    if target.weights.only:
        if quantizer.quantize is not None:
            yield "split", f"{target.title} has no kernel for QuantizeLinear, and leaves it to the CPU", AGAIN
        elif quantizer.dtype == ir.DataType.INT32 and quantizer.zero_point is not None:
            yield "refused", f"{target.title} takes no zero point of int32 codes", "leave it out"
    elif judged.is_activation(quantizer):
        yield from _of_activation(judged, quantizer)
    if quantizer.is_weight:
        yield from _of_weight(judged, quantizer)


def _of_activation(judged: Judged, quantizer: Quantizer) -> Iterator[tuple[Kind, str, str]]:
    target = judged.target
    kind: Kind = "refused" if target.limits.symmetric_only or target.placement.whole else "float"
    if quantizer.axis is not None:
        yield kind, f"its scale is per channel, and {target.title} takes one for an activation", AGAIN
    taken = {data for data, _ in target.weights.products}
    called = quantizer.dtype.name.lower()
    given = quantizer.zero_point is not None  # without one, each runtime takes its own type
    if given and called not in taken:
        yield kind, f"its codes are {called}, and {target.title} takes {' or '.join(sorted(taken))}", AGAIN


def _of_weight(judged: Judged, quantizer: Quantizer) -> Iterator[tuple[Kind, str, str]]:
    target = judged.target
    if quantizer.dtype == ir.DataType.INT32:
        if not target.biases.reads_int32:
            yield (
                "refused",
                f"{target.title} takes biases as floats, without a DequantizeLinear",
                "store the bias as float32",
            )
        return
    if quantizer.block:
        if quantizer.block not in target.weights.block_sizes:
            sizes = " and ".join(map(str, sorted(target.weights.block_sizes))) or "no blocks"
            fact = f"its blocks are of {quantizer.block}, and {target.title} takes {sizes}"
            yield "refused" if target.limits.symmetric_only else "float", fact, AGAIN
        return
    if target.placement.whole and quantizer.zero_points.any() and quantizer.axis is not None:
        yield "refused", "its scales are per channel, and a zero point is not 0", AGAIN
    yield from _of_products(judged, quantizer)


def _of_products(judged: Judged, quantizer: Quantizer) -> Iterator[tuple[Kind, str, str]]:
    """A weight beside the data that it meets."""
    target = judged.target
    for use in quantizer.output.uses():
        node = use.node
        if node.op_type not in target.operators.weighted or use.idx != 1:
            continue
        axis = _channel_axis(node, quantizer)
        one_scale = node.op_type in target.weights.one_scale
        if quantizer.axis not in (None, axis) or (quantizer.axis is not None and one_scale):
            kind: Kind = "refused" if target.limits.symmetric_only else "float"
            taken = "one scale" if one_scale else f"one scale, or a scale for each index of axis {axis}"
            yield (
                kind,
                f"the weight of {label(node)} has scales along axis {quantizer.axis}, and the kernel takes {taken}",
                AGAIN,
            )
        data = judged.quantized.get(node.inputs[0])  # type: ignore[arg-type]
        pair = (data.dtype.name.lower(), quantizer.dtype.name.lower()) if data is not None else None
        known = pair is not None and pair[0] in {one for one, _ in target.weights.products}
        if pair is not None and known and pair not in target.weights.products:
            fact = f"{label(node)} multiplies {pair[0]} data with {pair[1]} weights, for which {target.title} has no kernel"
            yield "refused" if target.limits.symmetric_only or target.placement.whole else "float", fact, AGAIN


def _channel_axis(node: ir.Node, quantizer: Quantizer) -> int:
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    stored = constant(quantizer.source)
    rank = 2 if stored is None else stored.ndim
    return rank - (2 if node.attributes.get_int("transB", 0) else 1)
