"""Reconstruction: parameters of each block are trained to give the float model's values, without labels.

Blocks in order, each on what the quantized blocks before it give, then all together: Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization", for layers; Li et al. 2021, "BRECQ", for blocks. Inputs are mixed element by element
with those of the float model, as in QDrop (Wei et al. 2022). Weights learn their rounding, with scales and biases, through the
straight-through estimator, as in block-wise training of all parameters (Chen et al. 2024, "EfficientQAT", section 3.2).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.data.batch import Batch
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph import files, io
from onnxqat.graph.without import ADAPTED, RECONSTRUCTION
from onnxqat.insertion.preparation import prepare
from onnxqat.runtime import checked
from onnxqat.search.reconstruction.blocks import borders
from onnxqat.search.reconstruction.learning import Blocks, Learning, maker
from onnxqat.terminal.progress import track
from onnxqat.terminal.quiet import quiet
from onnxqat.training.execution import Options
from onnxqat.training.training_graph.build import load_qdq

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

#: Samples below which the parameters may fit these samples alone.
ENOUGH = 256
#: Rate of the steps for the whole network, over that of blocks.
WHOLE = 0.4


def reconstruct(  # noqa: PLR0913  (the public interface is this flat)
    qdq: io.ModelLike,
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    *,
    steps: int = 100,
    finish: int = 100,
    lr: float = 5e-3,
    samples: int = 512,
    seed: int = 0,
    transform: sources.Transform | None = None,
    **execution: Unpack[Options],
) -> onnx.ModelProto:
    """Brings a Q/DQ model closer to the float model, block by block, on unlabelled data; a block that gets no closer stays.

    Args:
        qdq: the model, as `insert` wrote it.
        model: the float model that it was made from, with the same inputs (see `Config.fixed_inputs`).
        data: batches, labels not needed (see `onnxqat.data`).
        steps: optimizer steps for each block.
        finish: optimizer steps, after the blocks, for the whole network against the float model's outputs; 0: none.
        lr: largest learning rate, relative to the size of the parameters (see `AdamW.relative`); it falls to 0 along a cosine.
            In the steps for the whole network it is two fifths of that.
        samples: how many samples to read, 256 to 1,024.
        seed: seed of the order of the batches and of the mixing.
        transform: turns an item of the loader into a batch.
        execution: threads, layout, engine, memory and provider; see `Execution`.

    Returns:
        The Q/DQ model with other weights, biases and scales; `train` can go on from it.

    Example:
        ```python
        qdq = onnxqat.insert("model.onnx", "train.npz", onnxqat.Config(weight_bits=3, activation_bits=3))
        qdq = onnxqat.reconstruct(qdq, "model.onnx", "train.npz")
        ```

    Raises:
        InputError: a model or the data is wrong, or the Q/DQ model was made from another float model.
        UnsupportedModelError: nodes have no gradient; the message names them.
    """
    for name, number, least in (("steps", steps, 1), ("finish", finish, 0), ("samples", samples, 1), ("seed", seed, 0)):
        if number < least:
            raise InputError(f"{name} is {number}; it must be {least} or more")
    student, teacher = load_qdq(qdq), prepare(model)
    batches = sources.batches(data, student, transform=transform)
    batches.check_epochs(3, "data for reconstruction")
    pairs = _paired(student, teacher)
    learning = Learning(steps, lr, seed, execution)
    with files.workplace() as folder:
        blocks = Blocks(student, teacher, pairs, _first(batches, student, samples), folder)
        with quiet("onnxqat.training"):  # what it says of a model is not meant of a block
            errors = [blocks.learn(number, learning) for number in track(range(len(pairs)), "reconstruct blocks")]
            whole = blocks.finish(replace(learning, steps=finish, lr=WHOLE * lr)) if finish else None
    trained = [each for each in errors if each is not None]
    log.info("reconstructed %d of %d blocks", sum(after < before for before, after in trained), len(trained))
    if whole is not None:
        log.info("the whole network: squared error of the outputs %.3g, %.3g after %d steps", *whole, finish)
    student.metadata_props[ADAPTED] = RECONSTRUCTION
    return checked(io.to_proto(student))


def _paired(student: ir.Model, teacher: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Ends of blocks, each with the float model's value: an output by its name, another by the node that gives it."""
    outputs = {value.name: value for value in teacher.graph.outputs}
    makers = {node.name: node for node in teacher.graph}
    pairs = []
    for end in borders(student, makers):
        same = makers.get(maker(end).name)
        twin = outputs.get(end.name) if end.is_graph_output() else None if same is None else same.outputs[0]
        if twin is None or twin.producer() is None:
            raise InputError(
                f"float model: has no value {end.name!r} as the quantized one; give the model that insert was given"
            )
        pairs.append((end, twin))
    return pairs


def _first(batches: sources.Batches, model: ir.Model, samples: int) -> list[Batch]:
    """The whole batches that hold the first so many samples."""
    axes, names = Samples.of(model), [str(value.name) for value in model.graph.inputs]
    found = [batch for batch, _ in axes.leading(batches, names, samples)]
    taken = sum(axes.rows(batch, names) for batch in found)
    if taken < min(ENOUGH, samples):
        log.warning(
            "reconstruct: the data holds %d samples; parameters fit few samples alone, give %d to 1,024", taken, ENOUGH
        )
    return found
