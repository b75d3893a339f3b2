"""Training steps and evaluations: sessions of ONNX Runtime's whose parameters and gradients are bound in place.

Parameters are views of one flat array, gradients of another: an optimizer, an all-reduce or a checkpoint touches one array. On
the CPU a session reads and writes them where they lie, so that nothing is copied between steps. Another device has both in its
own memory (see `values.Double`): parameters are sent there before a step and gradients fetched after it, each in one piece. A
`Program` (see `program`), in contrast, is given its arrays again on each run.

Cores are used by cutting a batch, where its samples know nothing of each other (see `splitting`): each thread runs a part of it,
on one session, and has gradients of its own, those beyond the first in memory that the backward pass has freed. These are summed
in the same order every time, so that a run is repeatable to the bit; the parts depend on nothing but the size of the batch and
the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxqat.process.crew import Crew, cores
from onnxqat.runtime.devices import CPU, Device
from onnxqat.runtime.splitting import Part, Splitting
from onnxqat.training.running.lanes import Lanes, Places, Session, inside
from onnxqat.training.running.values import Array, Double, Floats, aligned, view
from onnxqat.training.running.weights import Weights
from onnxqat.training.training_graph.losses import LOSS
from onnxqat.training.training_graph.parameters import Layout
from onnxqat.training.training_graph.shared import shared

Found = TypeVar("Found")

#: Bytes that the gradients of all parts of a batch but the first may take; of a larger model, there are fewer parts.
LARGEST_COPIES = 2**30
#: Numbers that are summed in one go, so that they stay in the processor's cache.
_STRETCH = 1 << 16


class Engine:
    """Runs training steps and evaluations over one flat array of parameters.

    Args:
        training: graph of the steps.
        evaluation: graph of the evaluations.
        layout: place of each parameter.
        initial: values of the parameters.
        threads: number of cores to use; 0: all.
        splitting: how batches are cut into parts; None: they are not, and threads work inside operators.
        device: device that the graphs run on.
        sparing: whether gradients of parts may take an eighth of the memory that they else may.

    Attributes:
        parameters: the flat array; changing it changes the next run.
        gradients: the flat array of gradients that the last `step` wrote.
        training: the graph that `step` runs.
        results: the gradients and, after them, the loss: what several processes average, in one piece.
    """

    def __init__(
        self,
        training: ir.Model,
        evaluation: ir.Model,
        layout: Layout,
        initial: Floats,
        threads: int = 0,
        splitting: Splitting | None = None,
        device: Device = CPU,
        *,
        sparing: bool = False,
    ) -> None:
        self.layout = layout
        self.parameters = aligned(layout.size)
        self.parameters[:] = initial
        self.results = aligned(layout.size + 1)
        self.gradients = self.results[:-1]
        self._threads, self._splitting, self._device = threads or cores(), splitting, device
        self._read: Places = Double(self.parameters, device), layout.named(self.parameters)
        self._sparing = sparing
        self._written = Double(self.results, device)
        self._crew = Crew(self._threads)
        self._inside = inside(self._threads, 1 if splitting is None else splitting.least)
        self._evaluation = Lanes(
            lambda parts: evaluation, self._inside, device, lambda: [self._read], lambda: (self._written, {})
        )
        self.use(training)

    def use(self, training: ir.Model) -> None:
        """Runs this training graph from the next step on; gradients of parameters that it does not have are 0."""
        self.results[:] = 0
        self._written.send()
        self.training = training
        self._weights: Weights | None = None
        self._training = Lanes(self._graph_of, self._inside, self._device, self._inputs, self._outputs)

    def step(self, batch: Mapping[str, Array]) -> float:
        """Forward and backward: returns the loss and leaves the gradients in `gradients`."""
        most = LARGEST_COPIES // (8 if self._sparing else 1)
        parts = [part for part in self._parts(batch, 1 + most // self.results.nbytes) if part.share]
        self._read[0].send()
        lanes = self._training.of(len(parts))
        weights = self._weights if len(parts) > 1 else None
        if weights is not None:
            weights.quantize(self._crew)
        first, *others = [partial(_run, lane, part.arrays) for lane, part in zip(lanes, parts, strict=True)]
        _, *found = self._crew([partial(first, Session.run), *(partial(other, Session.results) for other in others)])
        self._written.fetch()
        if found or parts[0].share != 1:
            copies = [{name: view(value) for name, value in values.items()} for values in found]
            copies.insert(0, {name: self._results[name] for name in lanes[0].outputs})
            total = self._add_up([part.share for part in parts], copies, 0 if weights is None else 1)
            if weights is not None:
                weights.finish(self._crew, total, self._outputs())
        return self.loss

    @property
    def loss(self) -> float:
        """The loss in `results`."""
        return float(self.results[-1])

    def evaluate(self, batch: Mapping[str, Array], fetch: Sequence[str]) -> list[Array]:
        """Forward only; returns the named outputs (the loss is one of them)."""
        parts, run = self._parts(batch), partial(Session.run, fetch=fetch)
        self._read[0].send()
        lanes = self._evaluation.of(len(parts))
        found = self._crew([partial(_run, lane, part.arrays, run) for lane, part in zip(lanes, parts, strict=True)])
        if self._splitting is None or len(parts) == 1:
            return found[0]
        shares = [part.share for part in parts]
        return [
            np.asarray(sum(share * array for share, array in zip(shares, arrays, strict=True) if share))
            if name == LOSS
            else self._splitting.joined(name, arrays)
            for name, arrays in zip(fetch, zip(*found, strict=True), strict=True)
        ]

    def _graph_of(self, parts: int) -> ir.Model:
        """The training graph for so many parts; quantizers of weights are not in it where these are quantized for all parts."""
        if parts > 1 and self._weights is None:
            found = shared(self.training, self._threads)
            self._weights = None if found is None else Weights(found, self.layout, self._read)
        return self.training if parts == 1 or self._weights is None else self._weights.parts

    def _inputs(self) -> list[Places]:
        return [self._read] if self._weights is None else [self._read, self._weights.quantized]

    @property
    def _results(self) -> dict[str, Floats]:
        """Places of the results, by the names that the graph of the parts has for them."""
        views = self.layout.named(self.gradients)
        found = {f"{name}_grad": view for name, view in views.items()}
        if self._weights is not None:
            found |= {gradient: views[name] for name, gradient in self._weights.gradients.items()}
        return {**found, LOSS: self.results[-1:].reshape(())}

    def _outputs(self) -> Places:
        return self._written, self._results

    def _parts(self, batch: Mapping[str, Array], most: int | None = None) -> list[Part]:
        count = self._threads if most is None else min(self._threads, most)
        return [Part(batch, 1.0)] if self._splitting is None else self._splitting.parts(batch, count)

    def _add_up(
        self, shares: Sequence[float], parts: Sequence[Mapping[str, Floats]], into: int
    ) -> Mapping[str, Floats]:
        """The weighted sum of the parts' results, over those of a part; every number is summed in the same order."""
        order = [into, *(number for number in range(len(parts)) if number != into)]
        weights = [np.float32(shares[number]) for number in order]
        flat = ([parts[number][name].reshape(-1) for number in order] for name in parts[into])
        stretches = [
            [array[begin : begin + _STRETCH] for array in arrays]
            for arrays in flat
            for begin in range(0, arrays[0].size, _STRETCH)
        ]
        self._crew.map(partial(_add_stretch, weights), stretches)
        return parts[into]


def _add_stretch(weights: Sequence[np.float32], arrays: Sequence[Floats]) -> None:
    """Adds weighted arrays up in the first of them."""
    total = arrays[0]
    total *= weights[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total += weight * array


def _run(lane: Session, arrays: Mapping[str, Array], run: Callable[[Session], Found]) -> Found:
    lane.bind(arrays)
    return run(lane)
