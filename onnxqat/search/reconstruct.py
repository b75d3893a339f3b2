"""Reconstruction: parameters of each block are trained to give the float model's values, without labels.

Blocks in order, each on what the quantized blocks before it give: Nagel et al. 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization", for layers; Li et al. 2021, "BRECQ", for blocks. Inputs are mixed element by element with those of
the float model, as in QDrop (Wei et al. 2022). Weights learn their rounding, with scales and biases, through the straight-through
estimator, as in block-wise training of all parameters (Chen et al. 2024, "EfficientQAT", section 3.2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.data.batch import Batch
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph import files, io
from onnxqat.graph.subgraph import between, constant_nodes, read, subgraph
from onnxqat.graph.without import ADAPTED, RECONSTRUCTION
from onnxqat.insertion.calibration.parts import Parts
from onnxqat.insertion.preparation import prepare
from onnxqat.runtime import checked
from onnxqat.search.blocks import behind_layers, borders, weighted
from onnxqat.search.quiet import quiet
from onnxqat.terminal.progress import track
from onnxqat.training.execution import Options
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph.build import load_qdq

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

Array = NDArray[Any]

#: Share of a block's inputs that come from the float model.
MIXED = 0.5
#: Shares of the rate that are tried in turn until a block gets closer: some layers' terms nearly cancel.
SHARES = (1.0, 0.2, 0.04)
#: Samples below which the parameters may fit these samples alone.
ENOUGH = 256


def reconstruct(
    qdq: io.ModelLike,
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    *,
    steps: int = 100,
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
        lr: largest learning rate, relative to the size of the parameters (see `AdamW.relative`); it falls to 0 along a cosine.
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
    for name, number in (("steps", steps), ("samples", samples)):
        if number < 1:
            raise InputError(f"{name} is {number}; it must be 1 or more")
    student, teacher = load_qdq(qdq), prepare(model)
    batches = sources.batches(data, student, transform=transform)
    batches.check_epochs(3, "data for reconstruction")
    pairs = _paired(student, teacher)
    learning = Learning(steps, lr, seed, execution)
    with files.workplace() as folder:
        blocks = _Blocks(student, teacher, pairs, _first(batches, student, samples), folder)
        with quiet("onnxqat.training"):  # what it says of a model is not meant of a block
            errors = [blocks.learn(number, learning) for number in track(range(len(pairs)), "reconstruct blocks")]
    trained = [each for each in errors if each is not None]
    log.info("reconstructed %d of %d blocks", sum(after < before for before, after in trained), len(trained))
    student.metadata_props[ADAPTED] = RECONSTRUCTION
    return checked(io.to_proto(student))


@dataclass(frozen=True)
class Learning:
    """Settings by which each block is trained; see `reconstruct`."""

    steps: int
    lr: float
    seed: int
    execution: Options


class _Blocks:
    """The blocks of a model, and what the float and the quantized model give at their ends.

    Args:
        student: the Q/DQ model; its initializers change.
        teacher: the float model.
        pairs: ends of the blocks, each with the float model's value.
        batches: inputs.
        folder: an empty one for values.
    """

    def __init__(
        self,
        student: ir.Model,
        teacher: ir.Model,
        pairs: Sequence[tuple[ir.Value, ir.Value]],
        batches: Iterable[Batch],
        folder: Path,
    ) -> None:
        self._model, self._pairs, self._folder = student, pairs, folder
        places = [folder / name for name in ("quantized", "float")]
        for place in places:
            place.mkdir()
        self._layers, self._behind = weighted(student), behind_layers(student)
        self._quantized, self._float = (
            Parts(model, [_maker(pair[i]) for pair in pairs], batches, place)
            for i, (model, place) in enumerate(zip((student, teacher), places, strict=True))
        )
        self._aims: dict[ir.Value, list[Path]] = {}  # the float model's values at the ends that are still read

    def learn(self, number: int, learning: Learning) -> tuple[float, float] | None:
        """Trains a block; returns the mean squared error at its end before and after, None where it has no weights to train."""
        end, twin = self._pairs[number]
        aims = [self._folder / f"{number}_{batch}.npy" for batch in range(self._float.count)]
        for path, array in zip(aims, self._float.run(_maker(twin)), strict=True):
            np.save(path, array)
        given = {v for v in self._quantized.kept if v in self._behind or v.is_graph_input()}
        nodes = between(self._model.graph, given, [end])
        errors = None
        if not self._layers.isdisjoint(nodes):
            inputs = sorted(given.intersection(*[[v for node in nodes for v in read(node)]]), key=lambda v: str(v.name))
            errors = self._trained(nodes, inputs, end, aims, learning, number)
        for _ in self._quantized.run(_maker(end)):
            pass
        self._aims[end] = aims
        for value in [value for value in self._aims if value not in self._quantized.kept]:
            for path in self._aims.pop(value):
                path.unlink()
        return errors

    def _trained(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        end: ir.Value,
        aims: Sequence[Path],
        learning: Learning,
        number: int,
    ) -> tuple[float, float]:
        """Trains a block at the first rate that brings it closer; the error at its end before and after."""
        random = np.random.default_rng((learning.seed, number))

        def batch(index: int, share: float) -> Batch:
            arrays = {str(value.name): self._mixed(value, index, share, random) for value in inputs}
            return {**arrays, "label": np.load(aims[index])}

        def plain() -> Iterator[Batch]:
            return (batch(index, 0.0) for index in range(len(aims)))

        proto, shared, before, after = self._proto(nodes, inputs, end), self._shared(nodes), np.inf, np.inf
        for share in SHARES:
            optimizer = AdamW(share * learning.lr, relative=True)
            trainer = Trainer(proto, "mse", optimizer, schedule=Cosine(), freeze=shared, **learning.execution)
            before = trainer.evaluate(plain)["loss"]
            trainer.schedule.plan(1, learning.steps)
            order: Iterator[int] = chain.from_iterable(random.permutation(len(aims)) for _ in count())
            for index in islice(order, learning.steps):
                trainer.step(batch(index, MIXED))
            after = trainer.evaluate(plain)["loss"]
            log.debug("block %d to %s: squared error %.3g, before %.3g", number, end.name, after, before)
            if after < before:
                self._take(trainer)
                break
        return before, after

    def _take(self, trainer: Trainer) -> None:
        """Takes over what a block has learned."""
        for name, value in ir.from_proto(trainer.model()).graph.initializers.items():
            if name in self._model.graph.initializers:
                self._model.graph.initializers[name].const_value = value.const_value

    def _proto(self, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], end: ir.Value) -> onnx.ModelProto:
        proto = io.to_proto(subgraph(self._model, nodes, inputs, [end]))
        for value, given in zip(inputs, proto.graph.input, strict=True):
            array = self._quantized.load(value, 0)
            kind = given.type.tensor_type
            kind.elem_type = ir.DataType.from_numpy(array.dtype)
            if not kind.HasField("shape"):
                kind.shape.dim.extend([onnx.TensorShapeProto.Dimension() for _ in array.shape])
        return proto

    def _shared(self, nodes: Sequence[ir.Node]) -> list[str]:
        """Float initializers of the block that decide something outside of it too: they are trained nowhere."""
        own, constants = set(nodes), constant_nodes(nodes)
        used = {value for node in nodes for value in read(node)}
        outside = {value for value in used if any(use.node not in own for use in value.uses())}
        for node in reversed(nodes):
            if node in constants and not outside.isdisjoint(node.outputs):
                outside.update(read(node))
        return [str(v.name) for v in outside if v.is_initializer() and v.dtype == ir.DataType.FLOAT]

    def _mixed(self, value: ir.Value, index: int, share: float, random: np.random.Generator) -> Array:
        array = self._quantized.load(value, index)
        if not share or value not in self._aims:
            return array
        aim: Array = np.load(self._aims[value][index])
        return np.where(random.random(array.shape, np.float32) < share, aim, array)


def _paired(student: ir.Model, teacher: ir.Model) -> list[tuple[ir.Value, ir.Value]]:
    """Ends of blocks, each with the float model's value: an output by its name, another by the node that gives it."""
    outputs = {value.name: value for value in teacher.graph.outputs}
    makers = {node.name: node for node in teacher.graph}
    pairs = []
    for end in borders(student, makers):
        maker = makers.get(_maker(end).name)
        twin = outputs.get(end.name) if end.is_graph_output() else None if maker is None else maker.outputs[0]
        if twin is None or twin.producer() is None:
            raise InputError(
                f"float model: has no value {end.name!r} as the quantized one; give the model that insert was given"
            )
        pairs.append((end, twin))
    return pairs


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


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
