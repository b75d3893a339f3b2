"""The table of all runs, and its digest for the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from tools.benchmark_few_bits.contestants import CONTESTANTS, WIDTHS, Budget, Contestant
from tools.benchmark_few_bits.results import Result, Results

#: Scores of the float networks, in percent or dB (`models/README.md`, and the table of pretrained models).
FLOAT = {"resnet20": 93.09, "separable": 92.06, "pitch": 99.0, "orientation": 100.0, "super_resolution": 31.27}
#: Networks whose score is in dB, not a share.
DECIBELS = ("super_resolution",)
HEADER = (
    "| network | contestant | width | not trained | trained | rate | seconds | in training | MB | in training | processor |\n"
    "| --- | --- | --- | --- | --- | --- | --: | --: | --: | --: | --- |"
)
DIGEST = """\
Beside other tools, at equal budgets, weights and activations at the same width: two networks on Fashion-MNIST after 100 training
steps, pretrained ones (super_resolution in dB) after 50 without labels; the best after training is bold
([how it was measured](docs/benchmarks.md#few-bits-beside-peers); page orientation at 3 and 2 bits, where all end at chance,
is there too):

| network, width | float | not trained | trained | reconstructed | and then trained | best peer, trained | LSQ in PyTorch, best |
| --- | --: | --- | --- | --- | --- | --- | --- |"""
STAGES = ("ptq", "qat")
#: Networks and widths at which no contestant is better than chance; the digest leaves them out.
AT_CHANCE = {("orientation", "W3A3"), ("orientation", "W2A2")}
#: Training steps of a budget, and what the table calls it beside the name of a contestant.
BUDGETS = {100: "", 2300: ", five epochs"}
#: In the order of the lines.
CELLS = list(product(FLOAT, WIDTHS, CONTESTANTS.values(), BUDGETS))
#: Those whose best is in the digest.
PEERS, LSQ = ("brevitas", "brevitas-kept", "nncf", "torchao"), ("lsq", "lsq-kept")


def table(results: Results, seeds: Sequence[int], earlier: str = "") -> str:
    """All cells that have been measured; those without a result keep their line of the `earlier` table."""
    lines = {tuple(_cells(line)[:3]): line for line in earlier.splitlines()[2:] if line.startswith("|")}
    for cell in CELLS:
        if runs := _runs(*cell, seeds, results):
            lines[_head(*cell)] = _line(cell, runs)
    ordered = (lines[head] for cell in CELLS if (head := _head(*cell)) in lines)
    return "\n".join([HEADER, *ordered])


def _head(net: str, bits: int, contestant: Contestant, steps: int) -> tuple[str, str, str]:
    """The cells by which a line is known."""
    return net, contestant.title + BUDGETS[steps], f"W{bits}A{bits}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _runs(
    net: str, bits: int, contestant: Contestant, steps: int, seeds: Sequence[int], results: Results
) -> Sequence[tuple[float, Result]]:
    """Runs of a cell; those without training where not all rates have been tried, on the line of the first budget."""
    trained = contestant.done(net, bits, Budget(seeds, steps), results) if contestant.rates.get(bits) else []
    return trained or (contestant.done(net, bits, Budget(seeds, 0), results) if not BUDGETS[steps] else [])


def _line(cell: tuple[str, int, Contestant, int], runs: Sequence[tuple[float, Result]]) -> str:
    net = cell[0]
    found = {stage: [run[stage] for _, run in runs if stage in run] for stage in STAGES}
    rate = f"{runs[0][0]:g}" if found["qat"] else ""
    cells = [
        *(score(net, found[stage], len(runs)) for stage in STAGES),
        rate,
        *(_mean(found[stage], "seconds") for stage in STAGES),
        *(_mean(found[stage], "peak") for stage in STAGES),
        " and ".join(sorted({str(one["processor"]).partition(",")[0] for stage in STAGES for one in found[stage]})),
    ]
    return "| " + " | ".join([*_head(*cell), *cells]) + " |"


def score(net: str, stages: Sequence[Mapping[str, float]], seeds: int) -> str:
    """Mean and deviation over seeds, in percent or dB; the number of seeds where there is no deviation."""
    if not stages:
        return ""
    scores = [(1 if net in DECIBELS else 100) * one["test"] for one in stages]
    return f"{np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f}" if seeds > 1 else f"{scores[0]:.2f} (one seed)"


def _mean(stages: Sequence[Mapping[str, float]], what: str) -> str:
    return f"{np.mean([one[what] for one in stages]):.0f}" if stages else ""


def digest(text: str) -> str:
    """Digest of the table for the README: one line for each network and width at which a peer was trained; else nothing."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for line in text.splitlines()[2:]:
        if line.startswith("|"):
            net, title, width, *cells = _cells(line)
            rows.setdefault((net, width), {})[title] = cells
    lines = [
        f"| {net}, {width} | {FLOAT[net]:.2f} | {' | '.join(_digested(found))} |"
        for (net, width), found in rows.items()
        if _best(found, PEERS) and (net, width) not in AT_CHANCE
    ]
    return "\n".join([DIGEST, *lines]) if lines else ""


def _digested(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Cells of a line: ours, the best peer, the reference."""
    titles = [CONTESTANTS[name].title for name in ("affine", "plain", "reconstruct")]
    affine, plain, rebuilt = (found.get(title, ["", ""]) for title in titles)
    ours = affine if any(affine) else plain
    trained = [ours[1], rebuilt[1], _best(found, PEERS), _best(found, LSQ)]
    best = max(trained, key=_mean_of)
    after, both, peer, reference = (f"**{one}**" if one and one == best else one for one in trained)
    return [
        ours[0],
        after,
        rebuilt[0],
        both,
        peer + _best(found, PEERS, named=True).removeprefix(trained[2]),
        reference,
    ]


def _mean_of(shown: str) -> float:
    return float(shown.split()[0]) if shown else -np.inf


def _best(rows: Mapping[str, Sequence[str]], names: Iterable[str], *, named: bool = False) -> str:
    """The highest trained score of these contestants."""
    scores = {title: rows[title][1] for name in names if (title := CONTESTANTS[name].title) in rows and rows[title][1]}
    if not scores:
        return ""
    title = max(scores, key=lambda each: _mean_of(scores[each]))
    return f"{scores[title]}, {title}" if named else scores[title]
