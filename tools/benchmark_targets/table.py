"""The tables of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.benchmark_targets.nets import NETS, WAYS

Results = Mapping[str, Mapping[str, Any]]

HEADER = (
    "| net | target | nodes on integers | `check` | float | trained | deployed | same answers | rms "
    "| ONNX Runtime's own | images |\n"
    "| --- | --- | --: | --- | --: | --: | --: | --: | --: | --: | --: |"
)
PRETRAINED = (
    "| model | target | nodes on integers | `check` | float | inserted | deployed | same answers | off by | samples |\n"
    "| --- | --- | --: | --- | --: | --: | --: | --: | --: | --: |"
)


def table(results: Results) -> str:
    """The trained nets, the pretrained models, and what measured them."""
    found = [(net, way) for net in NETS for way in WAYS if f"{net}/{way}" in results]
    trained = [_line(net, way, results) for net, way in found if NETS[net].trained]
    inserted = [_line(net, way, results) for net, way in found if not NETS[net].trained]
    parts = [[HEADER, *trained], *([["", PRETRAINED, *inserted]] if inserted else []), ["", _said(results, found)]]
    return "\n".join(line for part in parts for line in part)


def _said(results: Results, found: list[tuple[str, str]]) -> str:
    ran = [(results[f"{net}/{way}"], WAYS[way].how) for net, way in found]
    kinds = sorted({(row["runtime"], how) for row, how in ran if "runtime" in row})
    processors = sorted({row["processor"] for row, _ in ran if "processor" in row})
    return f"{'; '.join(f'{runtime}: {how}' for runtime, how in kinds)}. Measured on {'; '.join(processors)}."


def _line(net: str, way: str, results: Results) -> str:
    row, subject = results[f"{net}/{way}"], NETS[net]
    titles = [subject.title, WAYS[way].title]
    if "refused" in row:
        width = (HEADER if subject.trained else PRETRAINED).splitlines()[0].count("|") - 1
        return f"| {' | '.join([*titles, 'refused', *([''] * (width - len(titles) - 1))])} |"
    found = ", ".join(f"{count} {kind}" for kind, count in row["check"].items() if count) or "0"
    cells = [*titles, row["nodes"], found, *_scores(row, subject.unit)]
    if subject.trained:
        own = results.get(f"{net}/{way}/own")
        cells += [f"{row['rms']:.2g}", "" if own is None else format(own["rms"], ".2g")]
    else:
        cells.append(f"{row['rms'] / row['size']:.1%}")
    return f"| {' | '.join([*cells, str(row['images'])])} |"


def _scores(row: Mapping[str, Any], unit: str) -> Iterator[str]:
    for name in ("float", "trained", "deployed"):
        yield f"{row[name]:.1f} {unit}"
    yield "" if row["agreement"] is None else f"{row['agreement']:.2f} %"
