"""Output correction: gives each channel of a layer's output the mean, and the deviation, that it has in the float model.

The mean by the bias: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2,
with means measured on data. The deviation by a factor on the weights and their scales, which leaves the codes as they are. For a
model with folded BatchNormalization it takes the place of estimating that layer's statistics again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.distributed import Workers
from onnxqat.graph import files
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, sole_user
from onnxqat.graph.qdq import Quantizer, by_output, quantizers
from onnxqat.insertion.calibration.moments import Moments, Noted, channel_axis, moments
from onnxqat.insertion.calibration.nearness import distances, float_outputs
from onnxqat.insertion.calibration.parts import Parts
from onnxqat.insertion.groups import inputs
from onnxqat.runtime import Inference
from onnxqat.terminal.progress import track

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Operators whose outputs are corrected.
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Bounds of the factor on a channel's weights.
FACTORS = 0.25, 4.0
#: Values of a channel below which they say too little of its deviation.
VALUES = 64
#: Of so many batches one is enough to judge the whole correction by.
JUDGED = 4


def corrected_layers(weighted: Iterable[ir.Node]) -> list[ir.Node]:
    """The layers among nodes with weights whose outputs can be corrected."""
    return [node for node in dict.fromkeys(weighted) if node.op_type in LAYERS]


def correct_outputs(
    original: ir.Model,
    quantized: ir.Model,
    weighted: Sequence[ir.Node],
    noted: Noted,
    workers: Workers,
    *,
    deviations: bool,
    judged: bool,
) -> bool:
    """Corrects the outputs of weighted layers in place, in order of execution: each behind layers that are corrected already.

    The model runs once over the samples; what layers to come read of them lies in temporary files. Returns whether the
    corrections stand: they lead away from the float model where they make noise larger, or statistics are those of padding.

    Args:
        original: the float model.
        quantized: the Q/DQ model.
        weighted: its nodes with weights.
        noted: what calibration has noted of the float model.
        workers: the processes; each runs its part of the samples.
        deviations: whether deviations are corrected, or means alone.
        judged: whether corrections are taken back if with them the model's outputs are further from the float model's.
    """
    chosen = set(corrected_layers(weighted))
    order = [node for node in quantized.graph if node in chosen]
    weights = by_output(quantizers(quantized))
    left: defaultdict[str, list[str]] = defaultdict(list)
    for node in weighted:
        if node.op_type not in LAYERS:
            left[f"{node.op_type} is not covered"].append(str(node.name))
    plain, undo = quantized.clone() if judged else None, _undo(quantized.graph)
    with files.workplace() as folder:
        names = float_outputs(original) if judged else []
        ends = [value for value in quantized.graph.outputs if value.name in names]
        parts = Parts(quantized, order, noted.inputs(), folder, ends, workers.threads(0))
        for node in track(order, "correct outputs"):
            found = _merged([moments(node, output) for output in parts.run(node)], workers)
            wanted = _merged([noted.sums[str(node.name)]] if noted.sums else [], workers)
            reason = "no bias of their own"
            if deviations and found[0].min() < VALUES:
                reason = f"fewer than {VALUES} values of a channel; give more samples"
            elif _correct(quantized.graph, node, wanted, found, _own(node, weights) if deviations else None, parts):
                continue
            left[reason].append(str(node.name))
        if plain is not None and _lead_away(original, plain, parts, workers):
            undo()
            return False
    log.info("corrected the outputs of %d layers", len(weighted) - sum(map(len, left.values())))
    for reason, names in left.items():
        log.warning("layers whose outputs are not corrected (%s): %s", reason, ", ".join(names))
    return True


def _lead_away(original: ir.Model, plain: ir.Model, parts: Parts, workers: Workers) -> bool:
    """Whether corrections take the model's outputs, which `parts` has, further from the float model's; says so."""
    names = float_outputs(original)
    if not names:
        return False
    reference, uncorrected = (Inference(model, names) for model in (original, plain))
    inputs = islice(parts.inputs(), 0, None, JUDGED)
    answers = (
        (reference(each), uncorrected(each), found) for each, found in zip(inputs, parts.ends(JUDGED), strict=True)
    )
    before, after = distances(names, answers, workers)
    if after.exceeds(before):
        log.warning(
            "outputs are not corrected: that would take the model's further from float, to a squared error of %.3g of variance "
            'from %.3g; "output_correction": "affine" does it all the same',
            after.error,
            before.error,
        )
    return after.exceeds(before)


def _undo(graph: ir.Graph) -> Callable[[], None]:
    """A function that gives the graph the initializers, and the nodes the inputs, that they have now."""
    values = [(value, value.const_value, value.shape) for value in graph.initializers.values()]
    reads = [(node, tuple(node.inputs)) for node in graph]

    def undo() -> None:
        for node, before in reads:
            if tuple(node.inputs) != before:
                node.resize_inputs(len(before))
                for index, value in enumerate(before):
                    node.replace_input_with(index, value)
        for name in graph.initializers.keys() - {value.name for value, _, _ in values}:
            del graph.initializers[name]
        for value, array, shape in values:
            value.const_value, value.shape = array, shape

    return undo


def _correct(
    graph: ir.Graph, node: ir.Node, wanted: Moments, found: Moments, weight: Quantizer | None, parts: Parts
) -> bool:
    """Corrects a layer, and its outputs in `parts`; False where it has no place for a bias."""
    factor = np.ones(found.shape[1]) if weight is None else _factor(weight, wanted, found)
    shift = wanted[1] / wanted[0] - factor * found[1] / found[0]
    if not _change_bias(graph, node, factor, shift):
        return False
    if weight is not None:
        _scale(weight, factor)
    parts.change(node.outputs[0], _change(node, factor, shift))
    return True


def _merged(moments: Sequence[Moments], workers: Workers) -> Moments:
    """The moments of all batches of all processes."""
    own = np.sum(moments, axis=0) if moments else np.zeros((3, 0))
    everyone = [theirs["moments"] for theirs in workers.gather({"moments": own})]
    return np.asarray(np.sum([each for each in everyone if each.size], axis=0))


def _own(node: ir.Node, weights: Mapping[ir.Value, Quantizer]) -> Quantizer | None:
    """The quantizer of the layer's weight, if nothing else reads the weight, its scale or the codes."""
    found = None if node.inputs[1] is None else weights.get(node.inputs[1])
    if found is None or constant(found.source) is None or found.quantize is None:
        return None
    readers = {use.node for value in (found.source, found.scale, found.output) for use in value.uses()}
    return found if readers <= {*found.nodes, node} else None


def _factor(weight: Quantizer, wanted: Moments, found: Moments) -> Floats:
    """The factor [C] by which the deviations of channels are to grow: one for all that share a scale."""
    shared = wanted.shape[1] if weight.block else weight.scales.size
    meant, measured = (
        (squares / count - np.square(total / count)).reshape(-1, shared).mean(axis=0)
        for count, total, squares in (wanted, found)
    )
    ratio = np.divide(meant, measured, out=np.ones(shared), where=(meant > 0) & (measured > 0))
    return np.tile(np.clip(np.sqrt(ratio), *FACTORS), wanted.shape[1] // shared)


def _scale(weight: Quantizer, factor: Floats) -> None:
    """Multiplies a weight's channels and their scales."""
    array = np.asarray(constant(weight.source))
    if weight.block:  # of a matrix, whose channels are the other axis
        own = along = np.expand_dims(factor, weight.axis or 0)
    else:
        own = factor[: weight.scales.size].reshape(weight.scales.shape)
        along = own if weight.axis is None else own.reshape([-1 if i == weight.axis else 1 for i in range(array.ndim)])
    for value, changed in ((weight.source, array * along), (weight.scale, np.asarray(constant(weight.scale)) * own)):
        value.const_value = ir.tensor(changed.astype(np.float32), name=value.name)


def _change(node: ir.Node, factor: Floats, shift: Floats) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that does to the output what the correction of the layer does; the shift of a MatMul is in the Add behind it."""
    shared = len(factor) == 1

    def changed(output: NDArray[Any]) -> NDArray[Any]:
        along = [1 if shared or i != channel_axis(node) % output.ndim else -1 for i in range(output.ndim)]
        scaled = output * factor.astype(np.float32).reshape(along)
        return scaled if node.op_type == "MatMul" else scaled + shift.astype(np.float32).reshape(along)

    return changed


def _change_bias(graph: ir.Graph, node: ir.Node, factor: Floats, shift: Floats) -> bool:
    """Gives the layer a bias of its own, changed as its output is by `factor` and `shift` [C]; False where it has no place."""
    adder, index = node, 2
    if node.op_type == "MatMul":
        user = sole_user(node.outputs[0])
        if user is None or user.op_type != "Add":
            return False
        adder = user
        index = next(i for i, value in enumerate(inputs(user)) if value is not node.outputs[0])
    old = adder.inputs[index] if index < len(adder.inputs) else None
    bias = np.zeros(len(shift), np.float32) if old is None else constant(old)
    if bias is None or bias.dtype != np.float32 or bias.ndim > 1 or bias.size not in (1, len(shift)):
        return False
    if index >= len(adder.inputs):
        adder.resize_inputs(index + 1)
    name = f"{node.name}_bias" if old is None else str(old.name)
    shape = bias.shape if bias.size == len(shift) else shift.shape
    own = 1 if node.op_type == "MatMul" else factor
    moved = (own * bias + shift).astype(np.float32).reshape(shape)
    if old is not None and old.is_initializer() and len(old.uses()) == 1:
        old.const_value = ir.tensor(moved, name=name)
        old.shape = ir.Shape(shape)
    else:
        adder.replace_input_with(index, constant_value(graph, name, moved))
    return True
