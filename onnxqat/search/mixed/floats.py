"""Chooses the layers that stay in float while all others are quantized alike: by time in a runtime, or by a drop.

A layer's loss is the noise over the signal of the model's outputs when its weights and what it reads are quantized, each
alone, in sum (see `sensitivity`): at 8 bits activations cost as much as weights. Its time is that of the whole model with the
layer in float and all others in integers, borders included. Sums of these are no more than estimates, so what they choose is
measured as a whole, and chosen again with what is missing taken off the budget.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.without import without_quantizers
from onnxqat.insertion import insert
from onnxqat.insertion.preparation.fixed import with_fixed_inputs
from onnxqat.metrics.table import Function
from onnxqat.names import RuntimeName
from onnxqat.runtime.toggles import readers
from onnxqat.search.latency.timing import Floats, Trials, leaving, trials
from onnxqat.search.mixed import FLOAT, Mixed, counted
from onnxqat.search.mixed.assign import Costs, assigned
from onnxqat.search.mixed.judging import judged_drop
from onnxqat.search.sensitivity.trials import sensitivity
from onnxqat.terminal.progress import track
from onnxqat.terminal.quiet import quiet

log = logging.getLogger(__name__)

#: Into how many pieces the layers are cut at most for timing, and how often a choice is measured and made again.
PIECES, TRIES = 32, 6
#: How far below the budget a time may be: a twentieth of what there is to gain is within what machines vary by.
NEAR = 0.02
#: Samples that the noise is measured on.
SAMPLES = 64

#: Runtime (None: the target's), interpreter of another environment that has it, and threads.
Place = tuple[RuntimeName | None, str | os.PathLike[str] | None, int]


def noises(model: io.ModelLike, data: Any, config: Config, transform: sources.Transform | None) -> dict[str, float]:
    """Noise over signal of the outputs that each node's quantizers cause, in sum, at the widths of the settings."""
    found = sensitivity(model, data, config, widths=[config.weight_bits], samples=SAMPLES, transform=transform)
    asked = {"weights": config.weight_bits, "activations": min(config.activation_bits, 8)}
    costs = {c.value: c for c in sorted(found.costs, key=lambda c: -c.bits) if c.bits >= asked[c.part]}
    total: dict[str, float] = {}
    for cost in costs.values():
        for node in cost.nodes:
            total[node] = total.get(node, 0.0) + 10 ** (-cost.snr / 10) / len(cost.nodes)
    return total


def within_latency(
    model: io.ModelLike, data: Any, config: Config, most: float, place: Place, transform: sources.Transform | None
) -> Mixed:
    """The layers in float with the least noise at no more than so much of float's time.

    Raises:
        InputError: there are none.
    """
    noise = noises(model, data, config, transform)
    with trials(model, data, config, place, transform) as tried:
        pieces = _Pieces.timed(tried, noise, config.weight_bits)
        found: dict[Floats, float] = {}
        bound = most
        for _ in range(TRIES):
            floats = pieces.within(bound)
            if floats in found:
                break
            ratio = found[floats] = tried.over_float(floats)
            log.info(
                "mixed precision: %d of %d layers in float: %.2f of float's time", len(floats), pieces.count, ratio
            )
            if most - NEAR <= ratio <= most:
                break
            bound += most - ratio
        found.setdefault(frozenset(), pieces.base)
        nearest = min(found.values())
        if nearest > most:
            raise InputError(
                f"budget: latency={most:g} cannot be reached in {tried.host.version()} on this machine; the nearest is "
                f"latency={nearest:.2g}"
            )
        fitting = [floats for floats, ratio in found.items() if ratio <= most]
        best = min(fitting, key=lambda floats: _sum(noise, set(noise) - floats))
        return _result(tried.inserted(frozenset()), config, best, noise, found[best])


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the layers in order, with what each loses in integers and what it takes in float.

    Attributes:
        names: names of the layers of each.
        losses: noise of each in integers, by its number; none in float.
        spent: time of each over that in integers, as a share of the float model's.
        base: time with all in integers.
    """

    names: Sequence[Floats]
    losses: Costs
    spent: Costs
    base: float

    @property
    def count(self) -> int:
        """Layers of all pieces."""
        return sum(map(len, self.names))

    @classmethod
    def timed(cls, tried: Trials, noise: Mapping[str, float], bits: int) -> _Pieces:
        """Times each piece in float with all others in integers."""
        layers, base = tried.layers(), tried.over_float(frozenset())
        names = [frozenset(map(str, some)) for some in np.array_split(layers, min(PIECES, len(layers)))]
        losses, spent = {}, {}
        for number, piece in enumerate(track(names, "timing layers")):
            change = base * (tried.change(piece, frozenset()) - 1)
            possible = {FLOAT: change} if np.isfinite(change) else {}
            spent[str(number)] = {bits: 0.0, **possible}
            losses[str(number)] = {bits: _sum(noise, piece), **dict.fromkeys(possible, 0.0)}
        return cls(names, losses, spent, base)

    def within(self, bound: float) -> Floats:
        """The layers in float with the least noise in about so much time; the fastest choice where there is none."""
        chosen = assigned(self.losses, self.spent, bound - self.base)
        if chosen is None:
            chosen = {name: min(taken, key=lambda bits: taken[bits]) for name, taken in self.spent.items()}
        return frozenset().union(*(self.names[int(name)] for name, bits in chosen.items() if bits == FLOAT))


def within_drop(
    model: io.ModelLike,
    data: Any,
    config: Config,
    drop: float,
    metric: str | Function,
    transform: sources.Transform | None,
) -> Mixed:
    """The fewest layers in float, the noisiest first, with which the model loses no more right after insertion.

    The noise is measured only where the model does not hold without any.

    Raises:
        InputError: there are none, or nothing can be judged.
    """
    original = with_fixed_inputs(model, config.fixed_inputs)
    with quiet("onnxqat"):
        whole = io.load(insert(model, data, config.uncalibrated(), transform=transform))
    ranked: list[str] = []
    found: dict[int, float] = {}

    def holds(count: int) -> bool:
        with quiet("onnxqat"):
            qdq = insert(model, data, leaving(config, frozenset(ranked[:count])), transform=transform)
            found[count] = judged_drop(qdq, data, original, metric, transform)
        log.info("mixed precision: drop %.3g with %d of the layers in float", found[count], count)
        return found[count] <= drop

    noise: dict[str, float] | None = None
    low, high = -1, 0
    while not holds(high):
        if noise is None:
            noise = noises(model, data, config, transform)
            ranked = [name for name, _ in sorted(noise.items(), key=lambda one: -one[1])]
        low, high = high, min(max(1, 2 * high), len(ranked) - 1)
        if low == high:
            nearest = min(found, key=lambda count: found[count])
            raise InputError(
                f"budget: drop={drop:g} cannot be reached with layers in float; the nearest is {found[nearest]:.3g}, with "
                f"{nearest} of {len(ranked)} of them"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return _result(whole, config, frozenset(ranked[:high]), noise)


def _sum(noise: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(noise.get(name, 0.0) for name in names)


def _result(
    whole: ir.Model, config: Config, floats: Floats, noise: Mapping[str, float] | None, latency: float | None = None
) -> Mixed:
    """The result, from the Q/DQ model with nothing in float."""
    read = {str(q.source.name): (q.bits, names) for q, names in readers(whole) if constant(q.source) is not None}
    widths = {name: FLOAT if floats.issuperset(names) else bits for name, (bits, names) in read.items()}
    elements, rest = counted(without_quantizers(whole), widths)
    loss = None if noise is None else _sum(noise, set(noise) - floats)
    return Mixed.of(leaving(config, floats), widths, (elements, rest), loss, latency)
