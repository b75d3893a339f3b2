"""Runs an optimizer's update graph over the flat arrays, in place, in stretches that stay in the processor's cache.

Each thread takes its share of the stretches: threads inside operators as small as these would only wait for each other.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.process.crew import Crew, cores
from onnxqat.runtime import exact_options, session
from onnxqat.training.optimize.optimizers import Optimizer, update_graph
from onnxqat.training.optimize.packed import BLOCK, Packed
from onnxqat.training.running.values import Binding, Floats, Loaded, Value, as_value
from onnxqat.training.training_graph.parameters import Kind, Layout

#: Elements per stretch: the dozen intermediate arrays of an update then fit into the second-level cache.
STRETCH = 1 << 16
#: A scale may shrink to this share of what it was when training began, so that int32 biases stay in range.
SCALE_FLOOR = 2.0**-14
#: Of a parameter, for relative steps; biases may begin at 0 (Adafactor's ε₂).
SMALLEST_SIZE = 1e-3
#: Share of a relative step for parameters of layers without quantizers: steps are to move codes, and these have none.
FLOAT_SHARE = 0.01
#: A step moves a zero point by the rate times so much of the codes' range: by the rate alone it would hardly reach another code.
ZERO_POINT_SHARE = 10.0


@dataclass(frozen=True)
class _Stretch:
    """A stretch of the flat arrays, ready to be updated.

    Attributes:
        session: runs the update.
        binding: the arrays that it works on.
        packed: moments in 8 bits.
        start: where the stretch begins in them.
        unpacked: the arrays that the update finds them in.
    """

    session: Loaded
    binding: Binding
    packed: Sequence[Packed]
    start: int
    unpacked: Sequence[Floats]

    def update(self) -> None:
        """Updates the stretch."""
        pairs = list(zip(self.packed, self.unpacked, strict=True))
        for packed, numbers in pairs:
            packed.read(self.start, numbers)
        self.session.run_with_iobinding(self.binding)
        for packed, numbers in pairs:
            packed.write(self.start, numbers)


class Updater:
    """An optimizer at work on one set of flat arrays.

    Attributes:
        moments: all that the optimizer remembers.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layout: Layout,
        parameters: Floats,
        gradients: Floats,
        threads: int = 0,
        hold: Callable[[], None] | None = None,
        *,
        in_8_bits: bool = False,
    ) -> None:
        """Takes `hold`, which clips parameters to their bounds and is part of every update.

        With `in_8_bits`, moments of weights are kept so (see `packed`).
        """
        self._optimizer, self._hold = optimizer, hold
        self._crew = Crew(threads or cores())
        numbers, squares = range(optimizer.moments), getattr(optimizer, "squares", ())
        self._packed_until = layout.bounds["weight"][1] if in_8_bits else 0
        self._packed = [Packed(self._packed_until, signed=i not in squares) for i in numbers] if in_8_bits else []
        self._floats = [np.zeros(parameters.size - self._packed_until, np.float32) for _ in numbers]
        # a place for each thread, which takes every n-th stretch of n threads (see `Crew.map`)
        self._unpacked = [[np.zeros(STRETCH, np.float32) for _ in self._packed] for _ in range(self._crew.size)]
        self._stretches: list[_Stretch] = []
        self._kept: list[object] = []  # bindings keep no references
        self._rates: dict[Kind, dict[str, Floats]] = {}
        low, high = scale_bounds(layout, parameters)
        zero_points = zero_point_steps(layout)
        units = sizes(layout, parameters) if optimizer.relative else None
        for kind, (start, stop) in layout.bounds.items():
            if start == stop:
                continue
            graph = update_graph(optimizer, kind)
            update = session(graph, exact_options(1))
            names = [*optimizer.rates(1.0, 1, decays=False), "gradient_factor"]
            self._rates[kind] = {name: np.zeros((), np.float32) for name in names}
            scalars = {name: self._value(array) for name, array in self._rates[kind].items()}
            for begin in range(start, stop, STRETCH):
                part = slice(begin, min(begin + STRETCH, stop))
                vectors = {"p": parameters[part], "g": gradients[part]}
                if kind == "scale":
                    inner = slice(part.start - start, part.stop - start)
                    vectors |= {"low": low[inner], "high": high[inner]}
                elif kind == "zero_point":
                    vectors |= {
                        name: array[part.start - start : part.stop - start] for name, array in zero_points.items()
                    }
                elif units is not None:
                    vectors["unit"] = units[part]
                self._bind(update, part, vectors, scalars)

    @property
    def moments(self) -> list[NDArray[Any]]:
        """See above."""
        return [*self._floats, *(array for one in self._packed for array in (one.codes, one.peaks))]

    def __call__(self, lr: float, step: int, gradient_factor: float) -> None:
        """One update; `step` is counted from 1. Ctrl-C waits until all of it is done."""
        for kind, arrays in self._rates.items():
            rates = self._optimizer.rates(lr, step, decays=kind == "weight")
            for name, number in {**rates, "gradient_factor": gradient_factor}.items():
                arrays[name][...] = number
        with _uninterrupted():
            self._crew.map(_Stretch.update, self._stretches)
            if self._hold is not None:
                self._hold()

    def _bind(self, update: Loaded, part: slice, vectors: dict[str, Floats], scalars: dict[str, Value]) -> None:
        """Adds a stretch; its moments are unpacked for an update where they are in 8 bits, in whole blocks."""
        size, packed = part.stop - part.start, self._packed if part.start < self._packed_until else []
        blocks = -(-size // BLOCK) * BLOCK
        unpacked = [array[:blocks] for array in self._unpacked[len(self._stretches) % self._crew.size]]
        inner = slice(part.start - self._packed_until, part.stop - self._packed_until)
        moments = [array[:size] for array in unpacked] if packed else [array[inner] for array in self._floats]
        names = [f"m{i}" for i in range(len(moments))]
        binding = update.io_binding()
        values = {
            name: self._value(array) for name, array in {**vectors, **dict(zip(names, moments, strict=True))}.items()
        }
        for name, value in {**values, **scalars}.items():
            binding.bind_ortvalue_input(name, value)
        for name in ["p", *names]:
            binding.bind_ortvalue_output(f"{name}_new", values[name])
        self._stretches.append(_Stretch(update, binding, packed, part.start, unpacked if packed else []))

    def _value(self, array: Floats) -> Value:
        value = as_value(array)
        self._kept += [array, value]
        return value


def sizes(layout: Layout, parameters: Floats) -> Floats:
    """Root mean square of the parameter that each element of the flat array belongs to, at least `SMALLEST_SIZE`.

    Of parameters that have no part in quantized layers, if there are such layers, a small share of it (`FLOAT_SHARE`).
    """
    units = np.ones_like(parameters)
    any_quantized = any(
        parameter.quantized and parameter.kind in ("weight", "other") for parameter in layout.parameters
    )
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
            high[begin : begin + parameter.size] = np.maximum(view, np.float32(min(parameter.bounds[1], 3e38)))
    return np.asarray(low, np.float32), high


def zero_point_steps(layout: Layout) -> dict[str, Floats]:
    """Of the zero points' part of the flat array: `low` and `high`, bounds, and `unit`, factors on steps."""
    start, stop = layout.bounds["zero_point"]
    found = {name: np.zeros(stop - start, np.float32) for name in ("low", "high", "unit")}
    for parameter in layout.parameters:
        if parameter.kind == "zero_point":
            (low, high), begin = parameter.bounds, parameter.offset - start
            for name, number in (("low", low), ("high", high), ("unit", ZERO_POINT_SHARE * (high - low + 1))):
                found[name][begin : begin + parameter.size] = number
    return found


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
