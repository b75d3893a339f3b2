"""Estimates the signal left of each value once all upstream of it is quantized; `insert` warns of the largest loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion.calibration.calibrate import with_outputs
from onnxqat.insertion.fills import without_fills
from onnxqat.insertion.groups import inputs, is_float
from onnxqat.runtime import Inference

log = logging.getLogger(__name__)

#: Signal over noise, in dB; 8 bits lose no more than this where the model takes them.
LEAST = 10.0
LARGEST_HALF = float(np.finfo(np.float16).max)
#: Most elements of a value that are compared.
ELEMENTS = 2**16


def warn_of_losses(
    original: ir.Model,
    quantized: ir.Model,
    names: dict[ir.Value, str],
    weighted: Sequence[ir.Node],
    batch: Batch,
    *,
    may_be_wide: bool,
) -> None:
    """Compares the quantized values of both models on a batch; one warning names where the signal is lost first.

    Args:
        original: the float model.
        quantized: the Q/DQ model.
        names: what each quantized value is called in the float model.
        weighted: the quantized layers, which the user may leave in float instead.
        batch: inputs.
        may_be_wide: whether values that lose most may have 16 bits instead.
    """
    outputs = {q.source: q.output for q in quantizers(quantized) if q.source in names}
    before = {str(value.name): value for node in original.graph for value in node.outputs}
    pairs = {value: before[name] for value, name in names.items() if name in before and value in outputs}
    if not pairs:
        return
    expected = _sampled(original, list(pairs.values()), batch)
    found = _sampled(quantized, [outputs[value] for value in pairs], batch)
    ratios = [_decibels(*both) for both in zip(expected, found, strict=True)]
    lost = [(value, ratio) for value, ratio in zip(pairs, ratios, strict=True) if ratio < LEAST]
    if lost:
        first, ratio = lost[0]
        node = first.producer()
        layers = [] if node is None else _layers_above(node, set(weighted))
        wider = (
            "use 16 bits (activation_bits: 16, or sixteen: auto for those that lose most), or " if may_be_wide else ""
        )
        log.warning(
            "%d of %d quantized values keep less than %g dB of their signal, the first %r of %s (%.1f dB); "
            "%sleave the layers before it in float (ignore: %s)",
            len(lost), len(pairs), LEAST, names[first], "the input" if node is None else label(node), ratio,
            wider, ", ".join(layers) or "none is quantized",
        )  # fmt: skip


def warn_of_overflow(original: ir.Model, nodes: Sequence[str], batch: Batch) -> None:
    """Warns of nodes left in float whose values a runtime that computes them in float16 cannot hold, on a batch.

    Args:
        original: the float model.
        nodes: names of the nodes.
        batch: inputs.
    """
    values = [v for node in original.graph if node.name in nodes for v in node.outputs if is_float(v) and v.uses()]
    if not values:
        return
    reached = [float(np.abs(array).max(initial=0)) for array in _sampled(original, values, batch)]
    beyond = [(value, most) for value, most in zip(values, reached, strict=True) if most > LARGEST_HALF]
    if beyond:
        (value, most), node = beyond[0], beyond[0][0].producer()
        log.warning(
            "%d values that stay in float reach beyond float16, in which they are computed, the first %r of %s (%.3g); "
            "scale what they compute from down",
            len(beyond), value.name, "the input" if node is None else label(node), most,
        )  # fmt: skip


def _sampled(model: ir.Model, values: Sequence[ir.Value], batch: Batch) -> list[NDArray[np.float32]]:
    """Evenly spread elements of the values; fill values are 0."""
    arrays = Inference(with_outputs(model, values), [str(value.name) for value in values])(batch).values()
    sampled = []
    for value, array in zip(values, arrays, strict=True):
        flat = without_fills(value, array).reshape(-1)
        sampled.append(flat[:: max(flat.size // ELEMENTS, 1)].copy())
    return sampled


def _decibels(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Signal over noise; infinite where nothing is lost, or there is no signal."""
    signal = float(np.square(expected, dtype=np.float64).sum())
    noise = float(np.square(found - expected, dtype=np.float64).sum())
    return float(10 * np.log10(signal / noise)) if signal and noise else float("inf")


def _layers_above(node: ir.Node, weighted: set[ir.Node]) -> list[str]:
    """The nearest quantized layers that the node computes from, or itself."""
    found: list[str] = []
    seen: set[ir.Node | None] = {None}
    todo: list[ir.Node | None] = [node]
    while todo:
        above = todo.pop(0)
        if above is None or above in seen:
            continue
        seen.add(above)
        if above in weighted:
            found.append(repr(above.name))
        else:
            todo += [value.producer() for value in inputs(above)]
    return found
