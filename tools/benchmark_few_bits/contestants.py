"""Contestants, and the runs that fill a cell of the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tools.benchmark_few_bits.results import Result, Results
from tools.benchmark_few_bits.task import Task

WIDTHS = (8, 4, 3, 2)
PRETRAINED = ("pitch", "orientation", "super_resolution")
#: Learning rates that are tried, at 8 bits and below.
RATES, LOW_RATES = (1e-5, 1e-4), (3e-4, 1e-3)
WARMUP = {"warmup": 10}
AFFINE = {"config": {"output_correction": "affine"}}


@dataclass(frozen=True)
class Budget:
    """What each contestant is given.

    Attributes:
        seeds: of its runs; the first chooses the rate.
        steps: training batches, half as many for pretrained networks; 0: no training.
    """

    seeds: Sequence[int] = (0, 1, 2)
    steps: int = 100

    def steps_of(self, net: str) -> int:
        """Training batches of a network."""
        return self.steps // 2 if net in PRETRAINED else self.steps


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        title: for the table.
        kind: of its `Task`.
        settings: of its `Task`.
        rates: that are tried, by width; an empty tuple where it does not train.
        peer: whether it runs in the peers' environment.
        not_on: networks that it cannot take.
    """

    title: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[int, tuple[float, ...]] = field(
        default_factory=lambda: {8: RATES, **dict.fromkeys((4, 3, 2), LOW_RATES)}
    )
    peer: bool = True
    not_on: Sequence[str] = ()

    def tasks(self, net: str, bits: int, budget: Budget, results: Results) -> Iterator[Task]:
        """Runs of a cell: each rate with the first seed, then the other seeds with the rate that was best."""
        yield from self._firsts(net, bits, budget)
        best = self._best(net, bits, budget, results)
        if best is not None:
            yield from (replace(best, seed=seed) for seed in budget.seeds[1:])

    def done(self, net: str, bits: int, budget: Budget, results: Results) -> list[tuple[float, Result]]:
        """The best rate and a result, for each seed that has run with it."""
        best = self._best(net, bits, budget, results) if bits in self.rates else None
        if best is None:
            return []
        found = [results.get(replace(best, seed=seed)) for seed in budget.seeds]
        return [(best.rate, result) for result in found if result is not None]

    def _firsts(self, net: str, bits: int, budget: Budget) -> list[Task]:
        settings = {**WARMUP, **self.settings}
        rates = (self.rates[bits] if budget.steps else ()) or (0.0,)
        return [
            Task(self.kind, net, bits, budget.seeds[0], rate, budget.steps_of(net) if rate else 0, settings)
            for rate in rates
        ]

    def _best(self, net: str, bits: int, budget: Budget, results: Results) -> Task | None:
        """The first seed's task at the rate with the lowest loss on validation images; None before all rates have run."""
        losses = []
        for task in self._firsts(net, bits, budget):
            found = results.get(task)
            if found is None:
                return None
            losses.append((found.get("qat", found["ptq"])["loss"], task))
        return min(losses, key=lambda one: one[0])[1]


def _at(rates: tuple[float, ...], *widths: int) -> dict[int, tuple[float, ...]]:
    return dict.fromkeys(widths, rates)


#: By the name under which they are asked for; in the order of the table's lines.
CONTESTANTS = {
    "plain": Contestant(
        "onnxqat, no correction",
        "onnxqat",
        {"config": {"output_correction": "none"}},
        {**_at(RATES, 8), **_at((), 4, 3, 2)},
        peer=False,
    ),
    "mean": Contestant(
        "onnxqat, mean", "onnxqat", {"config": {"output_correction": "mean"}}, _at((), 4, 3, 2), peer=False
    ),
    "affine": Contestant("onnxqat, affine", "onnxqat", AFFINE, _at(LOW_RATES, 4, 3, 2), peer=False),
    "reconstruct": Contestant(
        "onnxqat, affine and reconstruction",
        "onnxqat",
        {**AFFINE, "reconstruct": {}},
        _at((1e-4, 3e-4), 4, 3, 2),
        peer=False,
    ),
    "brevitas": Contestant("Brevitas, learned scales", "brevitas"),
    "brevitas-kept": Contestant("Brevitas, normalization kept", "brevitas", {"keep": True}, _at(LOW_RATES, 4, 3, 2)),
    "lsq": Contestant("LSQ in PyTorch", "lsq"),
    "lsq-kept": Contestant("LSQ in PyTorch, normalization kept", "lsq", {"keep": True}),
    "nncf": Contestant("NNCF", "nncf", {}, _at(RATES, 8), not_on=("orientation",)),
    "onnxruntime": Contestant("ONNX Runtime, static", "onnxruntime", {}, _at((), 8)),
    "torchao": Contestant("torchao, PT2E", "torchao", {}, _at(RATES, 8), not_on=("orientation", "super_resolution")),
}
