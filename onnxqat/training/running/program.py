"""Graphs that keep nothing between runs, on arrays that others own; parts of a batch run at once, as in `engine`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.samplewise.kinds import Rows
from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import exact_options, session
from onnxqat.runtime.devices import CPU, Device
from onnxqat.runtime.splitting import cut
from onnxqat.training.running.lanes import inside
from onnxqat.training.running.values import TYPES, Loaded, Value, allocated, as_value, run_bound, view

Array = NDArray[Any]
Values = Mapping[str, Value]
#: Gives memory for a value of this shape and type.
Take = Callable[[Sequence[int], ir.DataType], Value]


@dataclass(frozen=True)
class Division:
    """Parts of what a graph reads and writes.

    Attributes:
        inputs: place of the samples in each input that is made of them; the other inputs are the same for all parts.
        outputs: likewise of the outputs; of the others, those of the first part count.
        added: outputs that are the sum of those of the parts.
        least: number of samples that a part has at least.
    """

    inputs: Mapping[str, Rows]
    outputs: Mapping[str, Rows] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    least: int = 1

    def bounds(self, values: Values, most: int) -> list[tuple[int, int]]:
        """Beginning and end of each part in samples, of `most` parts at most; none where what is read does not fit together."""
        rows = self._rows(values)
        count = min(most, rows // self.least)
        return list(pairwise(rows * number // count for number in range(count + 1))) if count else []

    def _rows(self, values: Values) -> int:
        known = {name: place for name, place in self.inputs.items() if name in values}
        sizes = {name: values[name].shape()[place.axis] for name, place in known.items()}
        counts = {sizes[name] for name, place in known.items() if place.each == 1}
        rows = counts.pop() if len(counts) == 1 else 0
        return rows if rows and not any(size % rows for size in sizes.values()) else 0


class Program:
    """A graph that keeps nothing between runs, so that any number of callers may share it.

    Args:
        model: graph whose nodes stand in the order in which they are to run.
        threads: number of cores to use; 0: all.
        division: parts of a batch; None: it stays in one piece, and threads work inside operators.
        device: device that it runs on.

    Attributes:
        inputs: names of the inputs.
        outputs: types of the outputs as ONNX Runtime infers them.
    """

    def __init__(
        self, model: ir.Model, threads: int = 0, division: Division | None = None, device: Device = CPU
    ) -> None:
        self._model, self._threads, self._division, self._device = model, threads or cores(), division, device
        self._crew = Crew(self._threads)
        self._sessions: dict[int, Loaded] = {}
        self._shapes: dict[object, dict[str, list[int]]] = {}
        first = self._session(1 if division is None else self._threads)
        self.inputs = [value.name for value in first.get_inputs()]
        self.outputs = {value.name: TYPES[value.type] for value in first.get_outputs()}

    @property
    def is_divided(self) -> bool:
        """Whether parts of a batch run at once."""
        return self._division is not None

    def __call__(self, values: Values, take: Take = allocated) -> dict[str, Value]:
        """The outputs by name, in memory that belongs to them; `values` may hold more than the graph reads.

        They lie in the device's memory where something does that is read, else in the CPU's; `take` gives what outputs that parts
        fill take of that.
        """
        feeds = {name: values[name] for name in self.inputs}
        bounds = [] if self._division is None else self._division.bounds(feeds, self._threads)
        if self._division is None or len(bounds) < 2:
            return self._run(1, feeds, {})
        return self._in_parts(self._division, feeds, bounds, take)

    def _in_parts(
        self, division: Division, feeds: Values, bounds: Sequence[tuple[int, int]], take: Take
    ) -> dict[str, Value]:
        """Results go straight to their place in those of the batch, once it is known from a first run how large these are."""
        shapes = self._shapes.setdefault(
            tuple(tuple(feeds[name].shape()) for name in division.inputs if name in feeds), {}
        )
        whole = {name: take(shape, self.outputs[name]) for name, shape in shapes.items()}
        rows, calls = bounds[-1][1], []
        for bound in bounds:
            pieces = {name: _piece(value, division.inputs.get(name), rows, bound) for name, value in feeds.items()}
            places = {name: _cut(view(value), division.outputs[name], rows, bound) for name, value in whole.items()}
            calls.append(partial(self._run, len(bounds), pieces, places))
        found = self._crew(calls)
        for name, place in division.outputs.items():
            if name not in whole:
                whole[name] = _joined([part[name] for part in found], place.axis, take)
                if place.axis == 0:
                    shapes[name] = whole[name].shape()
        names = [name for name in self.outputs if name in division.added]
        self._crew([partial(_add_up, names[number :: len(bounds)], found) for number in range(len(bounds))])
        return {name: whole[name] if name in whole else found[0][name] for name in self.outputs}

    def _run(self, parts: int, feeds: Values, places: Mapping[str, Array]) -> dict[str, Value]:
        """Runs a part of a batch: what has a place is written there, and all else returned."""
        loaded = self._session(parts)
        binding = loaded.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        kept = {name: as_value(array) for name, array in places.items()}
        others = [name for name in self.outputs if name not in places]
        for name, value in kept.items():
            binding.bind_ortvalue_output(name, value)
        memory = self._memory(feeds)
        for name in others:
            binding.bind_output(name, *memory)
        run_bound(loaded, binding)
        return dict(zip(others, binding.get_outputs()[len(kept) :], strict=True))

    def _session(self, parts: int) -> Loaded:
        """A session for so many parts at once."""
        count = inside(self._threads, 1 if self._division is None else self._division.least)(parts)
        if count not in self._sessions:
            self._sessions[count] = session(self._model, exact_options(count), self._device)
        return self._sessions[count]

    def _memory(self, feeds: Values) -> tuple[str, int]:
        """Kind and number of the memory that results go to."""
        kind, _ = memory = self._device.memory
        on_device = kind != "cpu" and any(value.device_name() == kind for value in feeds.values())
        return memory if on_device else CPU.memory


class Chain:
    """Programs one after another, each of them given what those before it have computed.

    Args:
        stages: the programs; those of a stage run at once.
        inner: names of what only the programs read.

    Attributes:
        inputs: names of the inputs.
        outputs: types of the outputs.
        is_divided: whether parts of a batch run at once.
    """

    def __init__(self, stages: Sequence[Sequence[Program]], inner: Container[str] = ()) -> None:
        self._stages = stages
        programs = [program for stage in stages for program in stage]
        made = {name: dtype for program in programs for name, dtype in program.outputs.items()}
        read = (name for program in programs for name in program.inputs)
        self.inputs = [name for name in dict.fromkeys(read) if name not in made]
        self.outputs = {name: dtype for name, dtype in made.items() if name not in inner}
        self.is_divided = any(program.is_divided for program in programs)
        self._crew = Crew(max(map(len, stages)))

    def __call__(self, values: Values, take: Take = allocated) -> dict[str, Value]:
        """See `Program`."""
        known = dict(values)
        for stage in self._stages:
            for found in self._crew([partial(program, known, take) for program in stage]):
                known = known | found
        return {name: known[name] for name in self.outputs}


def _cut(array: Array, place: Rows, rows: int, bound: tuple[int, int]) -> Array:
    each = array.shape[place.axis] // rows
    return cut(array, place.axis, bound[0] * each, bound[1] * each)


def _piece(value: Value, place: Rows | None, rows: int, bound: tuple[int, int]) -> Value:
    return value if place is None else as_value(_cut(view(value), place, rows, bound))


def _joined(parts: Sequence[Value], axis: int, take: Take) -> Value:
    shape = list(parts[0].shape())
    shape[axis] = sum(part.shape()[axis] for part in parts)
    whole = take(shape, TYPES[parts[0].data_type()])
    np.concatenate([view(part) for part in parts], axis=axis, out=view(whole))
    return whole


def _add_up(names: Sequence[str], parts: Sequence[Values]) -> None:
    """Adds results of all parts to those of the first, in order."""
    for name in names:
        total = view(parts[0][name])
        for part in parts[1:]:
            total += view(part[name])
