"""Training steps and evaluations: sessions of ONNX Runtime's whose parameters and gradients are bound in place.

Parameters are views of one flat array, gradients of another: an optimizer, an all-reduce or a checkpoint touches one array. On
the CPU a session reads and writes them where they lie, so that nothing is copied between steps. Another device has both in its
own memory (see `values.Double`): parameters are sent there before a step and gradients fetched after it, each in one piece. A
`Program` (see `program`), in contrast, is given its arrays again on each run.

Cores are used by cutting a batch, where its samples know nothing of each other (see `splitting`): each thread runs a part of it,
on one session, and writes gradients of its own. These are summed in the same order every time, so that a run is repeatable to
the bit; the parts depend on nothing but the size of the batch and the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import exact_options, session
from onnxqat.runtime.devices import CPU, Device
from onnxqat.runtime.splitting import Part, Splitting
from onnxqat.training.training_graph.losses import LOSS
from onnxqat.training.training_graph.parameters import Layout
from onnxqat.training.values import Array, Double, Floats, Loaded, aligned, as_value, run_bound

Views: TypeAlias = Mapping[str, Floats]

#: Bytes that the gradients of all parts of a batch but the first may take; of a larger model, there are fewer parts.
LARGEST_COPIES = 2**30
#: Numbers that are summed in one go, so that they stay in the processor's cache.
_STRETCH = 1 << 16


class Session:
    """A training or evaluation graph, with the arrays that it runs on.

    Args:
        loaded: a session of ONNX Runtime's, which several may share that run at once.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._session = loaded
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]
        self._binding = self._session.io_binding()
        self._bound: dict[
            str, tuple[Array, Any]
        ] = {}  # a binding keeps no reference, and a freed array crashes the process

    @classmethod
    def of(cls, model: ir.Model, threads: int = 0) -> Session:
        """Loads a graph whose nodes stand in the order in which they are to run; `threads` inside an operator, 0: all cores."""
        return cls(session(model, exact_options(threads)))

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Binds arrays for all runs to come: on the CPU aliased, not copied; elsewhere as they are now."""
        for name, array in inputs.items():
            if name in self.inputs:
                self._binding.bind_ortvalue_input(name, self._keep(name, array))

    def bind_parts(self, inputs: tuple[Double, Views], outputs: tuple[Double, Views]) -> None:
        """Binds views of flat arrays, which outlive this, at their places on the device."""
        for name, view in inputs[1].items():
            if name in self.inputs:
                self._binding.bind_input(name, *inputs[0].place(view))
        for name, view in outputs[1].items():
            if name in self.outputs:
                self._binding.bind_output(name, *outputs[0].place(view))

    def run(self, fetch: Sequence[str] = ()) -> list[Array]:
        """Runs the graph on what is bound; returns the outputs `fetch`, whose arrays ONNX Runtime makes."""
        for name in fetch:
            self._binding.bind_output(name)
        run_bound(self._session, self._binding)
        values = self._binding.get_outputs() if fetch else []
        return [value.numpy() for value in values[-len(fetch) :]] if fetch else []

    def _keep(self, key: str, array: Array) -> Any:
        held = self._bound.get(key)
        if held is not None and held[0] is array:
            return held[1]
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        value = as_value(array)
        self._bound[key] = (array, value)
        return value


class Lanes:
    """Sessions of one graph for the parts of a batch: as many threads run at once as there are cores to use.

    Args:
        model: graph whose nodes stand in the order in which they are to run.
        threads: number of cores.
        device: device that they run on.
        inputs: views of a flat array that all of them read.
        outputs: views of a flat array that each of them writes, by the number of its part.
    """

    def __init__(
        self,
        model: ir.Model,
        threads: int,
        device: Device,
        inputs: tuple[Double, Views],
        outputs: Callable[[int], tuple[Double, Views]],
    ) -> None:
        self._model, self._threads, self._device = model, threads, device
        self._inputs, self._outputs = inputs, outputs
        self._lanes: dict[int, list[Session]] = {}

    def of(self, parts: int) -> list[Session]:
        """A session for each part, with more threads inside operators where there are fewer parts than cores."""
        new = parts not in self._lanes
        if new:
            inside = max(self._threads - parts + 1, 1)
            loaded = session(self._model, exact_options(inside), self._device)
            self._lanes[parts] = [Session(loaded) for _ in range(parts)]
        # What a node on the CPU reads of another device's memory, ONNX Runtime copies when it is bound.
        if new or not self._device.is_cpu:
            for number, lane in enumerate(self._lanes[parts]):
                lane.bind_parts(self._inputs, self._outputs(number))
        return self._lanes[parts]


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
        self._read = Double(self.parameters, device), layout.named(self.parameters)
        self._sparing = sparing
        self._copies, self._written = [self.results], [Double(self.results, device)]
        self._crew = Crew(self._threads)
        self._evaluation = Lanes(evaluation, self._threads, device, self._read, lambda number: (self._written[0], {}))
        self.use(training)

    def use(self, training: ir.Model) -> None:
        """Runs this training graph from the next step on; gradients of parameters that it does not have are 0."""
        for copy, double in zip(self._copies, self._written, strict=True):
            copy[:] = 0
            double.send()
        self.training = training
        self._training = Lanes(training, self._threads, self._device, self._read, self._results_of)

    def step(self, batch: Mapping[str, Array]) -> float:
        """Forward and backward: returns the loss and leaves the gradients in `gradients`."""
        most = LARGEST_COPIES // (8 if self._sparing else 1)
        parts = [part for part in self._parts(batch, 1 + most // self.results.nbytes) if part.share]
        self._read[0].send()
        lanes = self._training.of(len(parts))
        self._crew([partial(_run, lane, part.arrays) for lane, part in zip(lanes, parts, strict=True)])
        for double in self._written[: len(parts)]:
            double.fetch()
        if len(parts) > 1 or parts[0].share != 1:
            self._add_up([part.share for part in parts])
        return self.loss

    @property
    def loss(self) -> float:
        """The loss in `results`."""
        return float(self.results[-1])

    def evaluate(self, batch: Mapping[str, Array], fetch: Sequence[str]) -> list[Array]:
        """Forward only; returns the named outputs (the loss is one of them)."""
        parts = self._parts(batch)
        self._read[0].send()
        lanes = self._evaluation.of(len(parts))
        found = self._crew([partial(_run, lane, part.arrays, fetch) for lane, part in zip(lanes, parts, strict=True)])
        if self._splitting is None or len(parts) == 1:
            return found[0]
        shares = [part.share for part in parts]
        return [
            np.asarray(sum(share * array for share, array in zip(shares, arrays, strict=True) if share))
            if name == LOSS
            else self._splitting.joined(name, arrays)
            for name, arrays in zip(fetch, zip(*found, strict=True), strict=True)
        ]

    def _results_of(self, number: int) -> tuple[Double, Views]:
        """The results of a part, in an array of its own; the first part's are where those of the batch will be."""
        if number == len(self._copies):
            self._copies.append(aligned(self.results.size))
            self._written.append(Double(self._copies[number], self._device))
        copy = self._copies[number]
        gradients = {f"{name}_grad": view for name, view in self.layout.named(copy[:-1]).items()}
        return self._written[number], {**gradients, LOSS: copy[-1:].reshape(())}

    def _parts(self, batch: Mapping[str, Array], most: int | None = None) -> list[Part]:
        count = self._threads if most is None else min(self._threads, most)
        return [Part(batch, 1.0)] if self._splitting is None else self._splitting.parts(batch, count)

    def _add_up(self, shares: Sequence[float]) -> None:
        """Writes the weighted sum of the parts' results; every number is summed in the order of the parts."""
        size = self.results.size
        bounds = [size * number // len(shares) for number in range(len(shares) + 1)]
        weights = [np.float32(share) for share in shares]
        self._crew([partial(self._add_stretch, weights, *pair) for pair in pairwise(bounds)])

    def _add_stretch(self, weights: Sequence[np.float32], start: int, stop: int) -> None:
        for begin in range(start, stop, _STRETCH):
            part = slice(begin, min(begin + _STRETCH, stop))
            total = self.results[part]
            total *= weights[0]
            for weight, copy in zip(weights[1:], self._copies[1:], strict=False):
                total += weight * copy[part]


def _run(lane: Session, arrays: Mapping[str, Array], fetch: Sequence[str] = ()) -> list[Array]:
    lane.bind(arrays)
    return lane.run(fetch)
