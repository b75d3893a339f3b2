"""Runs an optimizer's update graph over the flat arrays, in place, in stretches that stay in the processor's cache.

Each thread takes its share of the stretches: threads inside operators as small as these would only wait for each other.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np

from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import exact_options, session
from onnxqat.training.engine import Binding, Floats, Loaded, Value, as_value
from onnxqat.training.optimize.optimizers import Optimizer, update_graph
from onnxqat.training.training_graph.parameters import Kind, Layout

#: Elements per stretch: the dozen intermediate arrays of an update then fit into the second-level cache.
STRETCH = 1 << 16
#: A scale may shrink to this share of what it was when training began, so that int32 biases stay in range.
SCALE_FLOOR = 2.0**-14
#: Of a parameter, for relative steps; biases may begin at 0 (Adafactor's ε₂).
SMALLEST_SIZE = 1e-3
#: Share of a relative step for parameters of layers without quantizers: steps are to move codes, and these have none.
FLOAT_SHARE = 0.01


class Updater:
    """An optimizer at work on one set of flat arrays.

    Attributes:
        moments: the optimizer's own flat arrays.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layout: Layout,
        parameters: Floats,
        gradients: Floats,
        threads: int = 0,
        hold: Callable[[], None] | None = None,
    ) -> None:
        """Takes `hold`, which clips parameters to their bounds and is part of every update."""
        self._optimizer, self._hold = optimizer, hold
        self.moments = [np.zeros_like(parameters) for _ in range(optimizer.moments)]
        self._crew = Crew(threads or cores())
        self._stretches: list[tuple[Kind, Loaded, Binding]] = []
        self._kept: list[object] = []  # bindings keep no references
        self._rates: dict[Kind, dict[str, Floats]] = {}
        low, high = scale_bounds(layout, parameters)
        units = sizes(layout, parameters)
        for kind, (start, stop) in layout.bounds.items():
            if start == stop:
                continue
            graph = update_graph(optimizer, logarithmic=kind == "scale")
            update = session(graph, exact_options(1))
            names = [*optimizer.rates(1.0, 1, decays=False), "gradient_factor"]
            self._rates[kind] = {name: np.zeros((), np.float32) for name in names}
            scalars = {name: self._value(array) for name, array in self._rates[kind].items()}
            for begin in range(start, stop, STRETCH):
                part = slice(begin, min(begin + STRETCH, stop))
                vectors = {"p": parameters[part], "g": gradients[part]}
                vectors |= {f"m{i}": moment[part] for i, moment in enumerate(self.moments)}
                if kind == "scale":
                    inner = slice(part.start - start, part.stop - start)
                    vectors |= {"low": low[inner], "high": high[inner]}
                elif optimizer.relative:
                    vectors["unit"] = units[part]
                self._bind(kind, update, vectors, scalars)

    def __call__(self, lr: float, step: int, gradient_factor: float) -> None:
        """One update; `step` is counted from 1. Ctrl-C waits until all of it is done."""
        for kind, arrays in self._rates.items():
            rates = self._optimizer.rates(lr, step, decays=kind == "weight")
            for name, number in {**rates, "gradient_factor": gradient_factor}.items():
                arrays[name][...] = number
        with _uninterrupted():
            self._crew.map(_run, self._stretches)
            if self._hold is not None:
                self._hold()

    def _bind(self, kind: Kind, update: Loaded, vectors: dict[str, Floats], scalars: dict[str, Value]) -> None:
        binding = update.io_binding()
        values = {name: self._value(array) for name, array in vectors.items()}
        for name, value in {**values, **scalars}.items():
            binding.bind_ortvalue_input(name, value)
        for name in ["p", *(f"m{i}" for i in range(self._optimizer.moments))]:
            binding.bind_ortvalue_output(f"{name}_new", values[name])
        self._stretches.append((kind, update, binding))

    def _value(self, array: Floats) -> Value:
        value = as_value(array)
        self._kept += [array, value]
        return value


def _run(stretch: tuple[Kind, Loaded, Binding]) -> None:
    _, update, binding = stretch
    update.run_with_iobinding(binding)


def sizes(layout: Layout, parameters: Floats) -> Floats:
    """Root mean square of the parameter that each element of the flat array belongs to, at least `SMALLEST_SIZE`.

    Of parameters that have no part in quantized layers, if there are such layers, a small share of it (`FLOAT_SHARE`).
    """
    units = np.ones_like(parameters)
    any_quantized = any(parameter.quantized and parameter.kind != "scale" for parameter in layout.parameters)
    for parameter in layout.parameters:
        view = parameter.view(parameters)
        size = max(float(np.sqrt(np.mean(np.square(view, dtype=np.float64)))), SMALLEST_SIZE)
        parameter.view(units)[...] = size if parameter.quantized or not any_quantized else size * FLOAT_SHARE
    return units


def scale_bounds(layout: Layout, parameters: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest value of each element of the scales' part of the flat array."""
    start, stop = layout.bounds["scale"]
    low = parameters[start:stop] * np.float32(SCALE_FLOOR)
    high = np.full(stop - start, np.inf, np.float32)
    for parameter in layout.parameters:
        if parameter.kind == "scale":
            begin = parameter.offset - start
            # Rounding may have put the scale itself a hair above its bound; training does not move what it need not.
            view = parameters[parameter.offset : parameter.offset + parameter.size]
            high[begin : begin + parameter.size] = np.maximum(view, np.float32(min(parameter.ceiling, 3e38)))
    return np.asarray(low, np.float32), high


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C for the duration: a run cannot resume from half an update."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending and callable(before):
        before(*pending[0])
