"""Sessions of ONNX Runtime's whose parameters and results are bound in place, and sets of them for the parts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxqat.runtime import exact_options, session
from onnxqat.runtime.devices import CPU, Device
from onnxqat.training.running.values import Array, Double, Floats, Loaded, Value, as_value, run_bound

Views: TypeAlias = Mapping[str, Floats]
#: A flat array, and views of it by the names that a graph has for them.
Places: TypeAlias = tuple[Double, Views]


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

    def bind_parts(self, inputs: Iterable[Places], outputs: Iterable[Places]) -> None:
        """Binds views of flat arrays, which outlive this, at their places on the device."""
        for double, views in inputs:
            for name, view in views.items():
                if name in self.inputs:
                    self._binding.bind_input(name, *double.place(view))
        for double, views in outputs:
            for name, view in views.items():
                if name in self.outputs:
                    self._binding.bind_output(name, *double.place(view))

    def bind_views(self, inputs: Mapping[str, Array]) -> None:
        """Binds float arrays of the CPU, which outlive the next run."""
        for name, array in inputs.items():
            if name in self.inputs:
                self._binding.bind_input(name, *CPU.memory, np.float32, array.shape, array.ctypes.data)

    def results(self) -> dict[str, Value]:
        """Runs the graph; its outputs by name, in memory that the next run takes back."""
        for name in self.outputs:
            self._binding.bind_output(name)
        run_bound(self._session, self._binding)
        return dict(zip(self.outputs, self._binding.get_outputs(), strict=True))

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


def inside(threads: int, least: int = 1) -> Callable[[int], int]:
    """Number of threads inside operators for so many parts of a batch: more than one where there are fewer parts than cores.

    Args:
        threads: number of cores.
        least: number of samples that a part has at least. If several, operators are small, and their threads would do little but
            wait for each other.
    """
    return lambda parts: 1 if least > 1 else max(threads - parts + 1, 1)


class Lanes:
    """Sessions of one graph for the parts of a batch: as many threads run at once as there are cores to use.

    Args:
        model: makes the graph for so many parts, whose nodes stand in the order in which they are to run.
        inside: threads inside operators, by number of parts.
        device: device that they run on.
        inputs: views of flat arrays that all of them read.
        outputs: views of a flat array that the first of them writes.
    """

    def __init__(
        self,
        model: Callable[[int], ir.Model],
        inside: Callable[[int], int],
        device: Device,
        inputs: Callable[[], Iterable[Places]],
        outputs: Callable[[], Places],
    ) -> None:
        self._model, self._inside, self._device = model, inside, device
        self._inputs, self._outputs = inputs, outputs
        self._lanes: dict[int, list[Session]] = {}

    def of(self, parts: int) -> list[Session]:
        """A session for each part."""
        new = parts not in self._lanes
        if new:
            loaded = session(self._model(parts), exact_options(self._inside(parts)), self._device)
            self._lanes[parts] = [Session(loaded) for _ in range(parts)]
        # What a node on the CPU reads of another device's memory, ONNX Runtime copies when it is bound.
        if new or not self._device.is_cpu:
            for number, lane in enumerate(self._lanes[parts]):
                lane.bind_parts(self._inputs(), [] if number else [self._outputs()])
        return self._lanes[parts]
