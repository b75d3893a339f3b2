"""Deployed models with some layers in float and the others in integers, timed against each other in a runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.config import Config
from onnxqat.config_parts import Select
from onnxqat.data import sources
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.preparation.fixed import with_fixed_inputs
from onnxqat.names import RuntimeName
from onnxqat.runtime.toggles import readers
from onnxqat.targets import TARGETS
from onnxqat.terminal.quiet import quiet
from onnxqat.verification.host import RUNTIME_OF, Host, opened

log = logging.getLogger(__name__)

#: Names of the layers that are in float.
Floats = frozenset[str]

#: Share of the time below which a trial counts as faster: machines differ from themselves by as much.
FASTER = 0.99
#: Seconds of a trial, and of a second look where the first does not decide.
SECONDS, LOOK = 0.3, 1.5
#: Seconds of the last comparison with the float model.
JUDGED = 4.0


@contextmanager
def trials(
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config,
    place: tuple[RuntimeName | None, str | os.PathLike[str] | None, int],
    transform: sources.Transform | None = None,
) -> Iterator[Trials]:
    """Opens a runtime for trials of a model on the first batch of its data.

    Args:
        model: the float model.
        data: batches; labels are not needed.
        config: the settings around the choice of layers.
        place: the runtime, the target's if None; the interpreter of another environment that has it; and threads.
        transform: turns an item of the loader into a batch.

    Raises:
        InputError: the runtime only simulates integers.
    """
    runtime, interpreter, threads = place
    chosen = runtime or RUNTIME_OF[config.target]
    if TARGETS[config.target].simulated or chosen == "qnn":
        raise InputError(
            f"target {config.target!r}: its integers are only simulated here, which says nothing of their time"
        )
    original = io.load(with_fixed_inputs(model, config.fixed_inputs), oldest_opset=7)
    source = sources.read(data) if isinstance(data, str | Path) else data
    first = next(iter(sources.batches(source, original, transform=transform)))
    inputs = {str(v.name): first[str(v.name)] for v in original.graph.inputs if str(v.name) in first}
    with opened(chosen, interpreter, threads) as host:
        yield Trials(host, model, original, [first], config, inputs)


@dataclass
class Trials:
    """Deployed models with some layers in float, in a runtime.

    Attributes:
        host: the runtime.
        model: the float model as it was given.
        original: the same, loaded.
        batches: a batch for `insert` to look at.
        config: the settings around the choice.
        inputs: what the models are timed on.
    """

    host: Host
    model: io.ModelLike
    original: ir.Model
    batches: list[Any]
    config: Config
    inputs: dict[str, NDArray[Any]]
    _held: dict[str, Floats] = field(default_factory=dict)

    def layers(self) -> list[str]:
        """Names of the nodes that may run on integers or in float, in order of execution."""
        qdq, target = self.inserted(frozenset()), TARGETS[self.config.target]
        named = {name for _, names in readers(qdq) for name in names}
        moving = target.operators.moves | target.operators.joins
        return [str(node.name) for node in qdq.graph if node.name in named and node.op_type not in moving]

    def ratio(self, one: Floats, other: Floats) -> float:
        """Time of one choice over that of another: 1 where chance may be the cause, infinite where it is refused."""
        other_name = self._loaded(other, ())
        try:
            name = self._loaded(one, (other_name,))
        except InputError as error:
            log.debug("a choice of layers cannot run: %s", error)
            return float("inf")
        found, chance = self._time(name, other_name, SECONDS)
        if found < 1 and found + 3 * chance > FASTER:  # seems faster, by what chance may be
            found, chance = self._time(name, other_name, LOOK)
        return found if abs(found - 1) > 2 * chance else 1.0

    def change(self, one: Floats, other: Floats) -> float:
        """Time of one choice over that of another as it is measured, infinite where it is refused."""
        other_name = self._loaded(other, ())
        try:
            return self._time(self._loaded(one, (other_name,)), other_name, LOOK)[0]
        except InputError as error:
            log.debug("a choice of layers cannot run: %s", error)
            return float("inf")

    def over_float(self, floats: Floats) -> float:
        """Time of a choice over that of the float model."""
        self.host.load("float", self.original, simulate=True)
        return self._time(self._loaded(floats, ()), "float", JUDGED)[0]

    def _time(self, one: str, other: str, seconds: float) -> tuple[float, float]:
        """Time of one loaded model over that of another, and its standard error."""
        taken = self.host.time([one, other], self.inputs, seconds)
        ratios = taken[one] / taken[other]
        median = float(np.median(ratios))
        error = (
            1.86 * float(np.median(np.abs(ratios - median))) / len(ratios) ** 0.5
        )  # of a median, by that of deviations
        return median, error

    def _loaded(self, floats: Floats, busy: Sequence[str]) -> str:
        """The name under which a choice is loaded, in place of one that is not busy."""
        for name, held in self._held.items():
            if held == floats:
                return name
        name = next(name for name in ("one", "two") if name not in busy)
        deployed = self.deployed(floats)
        self.host.load(name, self.original if deployed is None else deployed, simulate=deployed is None)
        self._held[name] = floats
        return name

    def deployed(self, floats: Floats) -> ir.Model | None:
        """The deployed model; None where nothing is left to quantize."""
        try:
            with quiet("onnxqat"):
                return io.load(fold(ir.to_proto(self.inserted(floats))))
        except UnsupportedModelError:
            if not floats:
                raise
            return None

    def inserted(self, floats: Floats) -> ir.Model:
        """The Q/DQ model, whose ranges are not calibrated: they do not change how long it takes."""
        with quiet("onnxqat"):
            return io.load(insert(self.model, self.batches, leaving(self.config.uncalibrated(), floats)))


def leaving(config: Config, floats: Floats) -> Config:
    """The settings with these layers in float as well."""
    return config.adding(ignore=[Select(name=name) for name in sorted(floats)])
