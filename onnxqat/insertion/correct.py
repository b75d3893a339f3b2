"""Bias correction: subtracts from a layer's bias the shift that quantization causes in the mean of its output.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2, with means measured on
data. For a model with folded BatchNormalization it takes the place of adapting that layer's statistics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, sole_user
from onnxqat.insertion.calibrate import with_outputs
from onnxqat.insertion.groups import inputs
from onnxqat.runtime import Inference
from onnxqat.terminal.progress import track

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]


def correct_biases(
    original: ir.Model, quantized: ir.Model, weighted: Sequence[ir.Node], batches: Iterable[Batch], samples: int
) -> None:
    """Adds E[y_float - y_quantized] of each output channel to the bias of each weighted layer, in place.

    Layer by layer in order of execution, so that each is corrected behind layers that are; every layer costs one run of the part
    of the model before it over the samples.

    Args:
        original: the float model; its nodes are found by their names.
        quantized: the Q/DQ model.
        weighted: its nodes with weights.
        batches: can be read many times.
        samples: how many samples to read each time.
    """
    chosen = {str(node.name) for node in weighted}
    before = {str(node.name): node for node in original.graph if node.name in chosen}
    wanted = _means(original, list(before.values()), batches, samples)
    order = [node for node in quantized.graph if node.name in before]
    left = []
    for node in track(order, "correct biases"):
        (found,) = _means(quantized, [node], batches, samples).values()
        shift = wanted[str(node.name)] - found
        if not _shift_bias(quantized.graph, node, shift):
            left.append(str(node.name))
    log.info("corrected the biases of %d layers", len(order) - len(left))
    if left:
        log.info("layers without a bias of their own, left as they are: %s", ", ".join(left))


def _means(model: ir.Model, nodes: Sequence[ir.Node], batches: Iterable[Batch], samples: int) -> dict[str, Floats]:
    """Mean output [C] of each output channel of the nodes over the samples, by the node's name."""
    values = [node.outputs[0] for node in nodes]
    run = Inference(with_outputs(model, values), [str(value.name) for value in values])
    sums: dict[str, Floats] = {}
    counts: dict[str, int] = {}
    for batch, part in _first(batches, samples, Samples.of(model), run.inputs):
        try:
            arrays = run(part)
        except InputError:  # a batch of fixed size, or samples that depend on each other
            arrays = run(batch)
        for node, array in zip(nodes, arrays.values(), strict=True):
            rows = _by_channel(node, array)
            name = str(node.name)
            sums[name] = sums.get(name, np.zeros(rows.shape[1])) + rows.sum(axis=0, dtype=np.float64)
            counts[name] = counts.get(name, 0) + len(rows)
    return {name: total / counts[name] for name, total in sums.items()}


def _first(
    batches: Iterable[Batch], samples: int, axes: Samples, names: Sequence[str]
) -> Iterator[tuple[Batch, Batch]]:
    """The batches with the first `samples` samples, and the share of each that counts: of the last one, what is left."""
    left = samples
    for batch in batches:
        rows = axes.rows(batch, names)
        yield batch, batch if rows <= left else axes.first(batch, names, left)
        left -= rows
        if left <= 0:
            return


def _by_channel(node: ir.Node, output: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output as [positions, C]; what MatMul makes of a vector has no axis of channels, so it has one."""
    weight = node.inputs[1]
    if weight is not None and weight.shape is not None and weight.shape.rank() == 1:
        return output.reshape(-1, 1)
    axis = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    return np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])


def _shift_bias(graph: ir.Graph, node: ir.Node, shift: Floats) -> bool:
    """Gives the layer a bias of its own, moved by `shift` [C]; False where it has no place for one."""
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
    moved = (bias + shift).astype(np.float32).reshape(shape)
    if old is not None and old.is_initializer() and len(old.uses()) == 1:
        old.const_value = ir.tensor(moved, name=name)
        old.shape = ir.Shape(shape)
    else:
        adder.replace_input_with(index, constant_value(graph, name, moved))
    return True
