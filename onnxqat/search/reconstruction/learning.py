"""Blocks of a Q/DQ model that learn, one after the other and then all together, to give the float model's values."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.graph import io
from onnxqat.graph.subgraph import between, constant_nodes, read, subgraph
from onnxqat.insertion.calibration.parts import Parts
from onnxqat.search.reconstruction.blocks import behind_layers, last, weighted
from onnxqat.training.execution import Options
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)

Array = NDArray[Any]

#: Share of a block's inputs that come from the float model.
MIXED = 0.5
#: Shares of the rate that are tried in turn until a block gets closer: some layers' terms nearly cancel.
SHARES = (1.0, 0.2, 0.04)
#: Of so many steps one is the warm-up's: Adam's first steps have full size, whatever the gradient.
WARM = 10


@dataclass(frozen=True)
class Learning:
    """Settings by which each block is trained; see `reconstruct`."""

    steps: int
    lr: float
    seed: int
    execution: Options


class Blocks:
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
        self._last = [end for end, _ in pairs if end in last(student.graph)]
        self._quantized, self._float = (
            Parts(model, [maker(pair[i]) for pair in pairs], batches, place, self._last if i == 0 else ())
            for i, (model, place) in enumerate(zip((student, teacher), places, strict=True))
        )
        self._aims: dict[ir.Value, list[Path]] = {}  # the float model's values at the ends that are still read

    def learn(self, number: int, learning: Learning) -> tuple[float, float] | None:
        """Trains a block; returns the mean squared error at its end before and after, None where it has no weights to train."""
        end, twin = self._pairs[number]
        self._aims[end] = [self._folder / f"{number}_{batch}.npy" for batch in range(self._float.count)]
        for path, array in zip(self._aims[end], self._float.run(maker(twin)), strict=True):
            np.save(path, array)
        given = {v for v in self._quantized.kept if v in self._behind or v.is_graph_input()}
        errors = self._learned(given, [end], learning, number)
        for _ in self._quantized.run(maker(end)):
            pass
        for value in [value for value in self._aims if value not in self._quantized.kept]:
            for path in self._aims.pop(value):
                path.unlink()
        return errors

    def finish(self, learning: Learning) -> tuple[float, float] | None:
        """Trains all blocks together when each has learned; returns what `learn` does, of the last ends."""
        given = {value for value in self._model.graph.inputs if not value.is_initializer()}
        return self._learned(given, self._last, learning, len(self._pairs))

    def _learned(
        self, given: set[ir.Value], ends: Sequence[ir.Value], learning: Learning, number: int
    ) -> tuple[float, float] | None:
        """Trains what lies between values at the first rate that brings it closer; the error at the ends before and after."""
        nodes = between(self._model.graph, given, ends)
        if self._layers.isdisjoint(nodes):
            return None
        inputs = sorted(given.intersection(*[[v for node in nodes for v in read(node)]]), key=lambda v: str(v.name))
        random = np.random.default_rng((learning.seed, number))
        labels = ["label"] if len(ends) == 1 else [f"meant{index}" for index in range(len(ends))]
        aims = dict(zip(labels, (self._aims[end] for end in ends), strict=True))

        def batch(index: int, share: float) -> Batch:
            arrays = {str(value.name): self._mixed(value, index, share, random) for value in inputs}
            return arrays | {name: np.load(paths[index]) for name, paths in aims.items()}

        def plain() -> Iterator[Batch]:
            return (batch(index, 0.0) for index in range(self._quantized.count))

        proto, shared, before, after = self._proto(nodes, inputs, ends), self._shared(nodes), np.inf, np.inf
        loss = "mse" if len(ends) == 1 else _errors(aims)
        for share in SHARES:
            optimizer, schedule = AdamW(share * learning.lr, relative=True), Cosine(warmup_steps=learning.steps // WARM)
            trainer = Trainer(proto, loss, optimizer, schedule=schedule, freeze=shared, **learning.execution)
            before = trainer.evaluate(plain)["loss"]
            trainer.schedule.plan(1, learning.steps)
            order: Iterator[int] = chain.from_iterable(random.permutation(self._quantized.count) for _ in count())
            for index in islice(order, learning.steps):
                trainer.step(batch(index, MIXED))
            after = trainer.evaluate(plain)["loss"]
            log.debug("block %d to %s: squared error %.3g, before %.3g", number, ends[0].name, after, before)
            if after < before:
                self._take(trainer)
                break
        return before, after

    def _take(self, trainer: Trainer) -> None:
        """Takes over what a block has learned."""
        for name, value in ir.from_proto(trainer.model()).graph.initializers.items():
            if name in self._model.graph.initializers:
                self._model.graph.initializers[name].const_value = value.const_value

    def _proto(self, nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], ends: Sequence[ir.Value]) -> onnx.ModelProto:
        proto = io.to_proto(subgraph(self._model, nodes, inputs, ends))
        for value, given in zip(inputs, proto.graph.input, strict=True):
            array = self._quantized.load(value, 0)
            kind = given.type.tensor_type
            kind.elem_type = ir.DataType.from_numpy(array.dtype)
            if not kind.HasField("shape"):
                kind.shape.dim.extend([onnx.TensorShapeProto.Dimension() for _ in array.shape])
        return proto

    def _shared(self, nodes: Sequence[ir.Node]) -> list[str]:
        """Float initializers of the block that decide something outside of it too: they are trained with the whole alone."""
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


def maker(value: ir.Value) -> ir.Node:
    """The node that gives a value."""
    node = value.producer()
    assert node is not None
    return node


def _errors(aims: Mapping[str, Sequence[Path]]) -> onnx.FunctionProto:
    """The sum of several outputs' squared errors, each over the variance of the float model's values."""
    variances = [np.mean([np.load(path).var() for path in paths]) for paths in aims.values()]
    found = [f"found{index}" for index in range(len(aims))]
    body = "".join(
        f"d{name} = Sub({output}, {name}) s{name} = Mul(d{name}, d{name}) m{name} = ReduceMean<keepdims=0>(s{name}) "
        f"v{name} = Constant<value_float={1 / max(float(variance), 1e-12)!r}>() e{name} = Mul(m{name}, v{name}) "
        for output, name, variance in zip(found, aims, variances, strict=True)
    )
    return onnx.parser.parse_function(
        f'<opset_import: ["": 17], domain: "onnxqat.search"> errors ({", ".join([*found, *aims])}) => (total) '
        f"{{ {body} total = Sum({', '.join(f'e{name}' for name in aims)}) }}"
    )
