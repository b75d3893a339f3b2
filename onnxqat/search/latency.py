"""Choice of the layers that stay in float so that the deployed model is fastest in a runtime on this machine, by trial.

A layer alone says little: what its neighbours are decides whether numbers are quantized and dequantized around it, and in which
layout they come. So whole models are timed, in which a stretch of layers is in float or in integers: all of them, halves,
quarters, down to a few or single ones. What was faster stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
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
from onnxqat.search.quiet import quiet
from onnxqat.targets import TARGETS
from onnxqat.terminal.progress import track
from onnxqat.verification.host import RUNTIME_OF, Host, opened

log = logging.getLogger(__name__)

#: Names of the layers that are in float.
Floats = frozenset[str]
#: Time of one choice of layers as a multiple of another's.
Ratio = Callable[[Floats, Floats], float]

#: Share of the time below which a trial counts as faster: machines differ from themselves by as much.
FASTER = 0.99
#: Seconds of a trial, and of a second look where the first does not decide.
SECONDS, LOOK = 0.3, 1.5
#: Seconds of the last comparison with the float model.
JUDGED = 4.0
#: Into how many stretches the layers are cut at most.
PIECES = 32


@dataclass(frozen=True)
class Faster:
    """Result of `onnxqat.faster`.

    Attributes:
        config: settings that leave these layers in float; `insert` takes it, and a file of it can be edited.
        floats: names of the layers that are in float because they are faster so.
        layers: how many layers could have been integers.
        ratio: time of the deployed model over that of the float model.
        before: the same with all layers in integers.
        runtime: name and version of the runtime.

    Example:
        ```python
        found = onnxqat.faster("model.onnx", "train.npz")
        print(found.floats, found.ratio)
        ```
    """

    config: Config
    floats: tuple[str, ...]
    layers: int
    ratio: float
    before: float
    runtime: str

    def __str__(self) -> str:
        return (
            f"{len(self.floats)} of {self.layers} layers stay in float; {self.ratio:.2f} of float's time in {self.runtime}, "
            f"{self.before:.2f} with all in integers"
        )


def faster(
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config | None = None,
    *,
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    threads: int = 2,
    transform: sources.Transform | None = None,
) -> Faster:
    """Chooses the layers that stay in float so that the deployed model is fastest in a runtime, on this machine.

    Models are timed on the first batch of the data, with ranges that are not calibrated. Another machine, or another size of
    batch, may choose otherwise; the settings that are returned give the same model everywhere.

    Args:
        model: the float model.
        data: batches, labels not needed.
        config: all other settings; None: `Config()`.
        runtime: "ort" or "openvino"; None: the target's.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        threads: how many threads the runtime may use.
        transform: turns an item of the loader into a batch.

    Example:
        ```python
        found = onnxqat.faster("model.onnx", "train.npz")
        print(found)
        qdq = onnxqat.insert("model.onnx", "train.npz", found.config)
        ```

    Raises:
        InputError: no layer is faster in integers, the runtime only simulates integers, or an argument is wrong.
    """
    config = config or Config()
    target = TARGETS[config.target]
    chosen = runtime or RUNTIME_OF[config.target]
    if target.simulated or chosen == "qnn":
        raise InputError(
            f"target {config.target!r}: its integers are only simulated here, which says nothing of their time"
        )
    original = io.load(with_fixed_inputs(model, config.fixed_inputs), oldest_opset=7)
    source = sources.read(data) if isinstance(data, str | Path) else data
    first = next(iter(sources.batches(source, original, transform=transform)))
    inputs = {str(v.name): first[str(v.name)] for v in original.graph.inputs if str(v.name) in first}
    with opened(chosen, interpreter, threads) as host:
        trials = _Trials(host, model, original, [first], config, inputs)
        layers = trials.layers()
        found = settled(layers, trials.ratio)
        before, ratio = (trials.over_float(floats) for floats in (frozenset(), found))
        version = host.version()
    if len(found) == len(layers):
        raise InputError(
            f"model: no layer is faster in integers in {version} on this machine (all take {before:.2f} of float's time); deploy "
            "the float model, or insert without --for latency for a smaller file"
        )
    names = tuple(name for name in layers if name in found)
    return Faster(_leaving(config, found), names, len(layers), ratio, before, version)


def settled(layers: Sequence[str], ratio: Ratio) -> Floats:
    """The layers to leave in float: each stretch is turned over, and stays so where that is faster than what was best so far.

    Args:
        layers: names in order of execution.
        ratio: time of one choice over that of another.
    """
    best: Floats = frozenset()
    least = -(-len(layers) // PIECES)
    for start, stop in track(list(stretches(len(layers), least)), "timing layers"):
        stretch = frozenset(layers[start:stop])
        for turned in dict.fromkeys((best | stretch, best - stretch)):
            if turned != best and ratio(turned, best) < FASTER:
                best = turned
    return best


def stretches(count: int, least: int = 1, start: int = 0) -> Iterator[tuple[int, int]]:
    """Beginning and end of all of so many, of their halves, of the halves of these, down to so few or single ones."""
    yield start, start + count
    if count > least:
        yield from stretches(count // 2, least, start)
        yield from stretches(count - count // 2, least, start + count // 2)


@dataclass
class _Trials:
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
        qdq, target = self._inserted(frozenset()), TARGETS[self.config.target]
        named = {name for _, names in readers(qdq) for name in names}
        moving = target.moves | target.joins
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
        deployed = self._deployed(floats)
        self.host.load(name, self.original if deployed is None else deployed, simulate=deployed is None)
        self._held[name] = floats
        return name

    def _deployed(self, floats: Floats) -> ir.Model | None:
        """The deployed model; None where nothing is left to quantize."""
        try:
            with quiet("onnxqat"):
                return io.load(fold(ir.to_proto(self._inserted(floats))))
        except UnsupportedModelError:
            if not floats:
                raise
            return None

    def _inserted(self, floats: Floats) -> ir.Model:
        """The Q/DQ model, whose ranges are not calibrated: they do not change how long it takes."""
        ranges = self.config.activation_range.model_copy(update={"samples": 0})
        unread = self.config.model_copy(update={"activation_range": ranges, "output_correction": "none"})
        with quiet("onnxqat"):
            return io.load(insert(self.model, self.batches, _leaving(unread, floats)))


def _leaving(config: Config, floats: Floats) -> Config:
    """The settings with these layers in float as well."""
    ignored = tuple(Select(name=name) for name in sorted(floats))
    return Config(**{**dict(config), "ignore": (*config.ignore, *ignored)})
