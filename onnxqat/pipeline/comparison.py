"""Runs side by side, from the folders that `run --save-dir` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table as Rows

from onnxqat.config_parts import one_line
from onnxqat.errors import InputError
from onnxqat.page import Cell, Chart, Section, Table, Text, render
from onnxqat.pipeline.saving import RUN
from onnxqat.terminal.plain import cells
from onnxqat.verification.measures import shown


@dataclass(frozen=True)
class Comparison:
    """Several runs; prints as tables, and makes a page.

    Attributes:
        runs: contents of each folder's `run.json`, by the folder's name.
    """

    runs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Comparison:
        """Reads the folders.

        Raises:
            InputError: one of them is none that a run was saved to.
        """
        names = [folder.name or str(folder) for folder in folders]
        if len(set(names)) < len(names):
            names = [str(folder) for folder in folders]
        return cls({name: _read(folder) for name, folder in zip(names, folders, strict=True)})

    def figures(self) -> Iterator[tuple[Cell, ...]]:
        """One row for each run: its scores, its size and its time."""
        for name, run in self.runs.items():
            report, metric = run["report"], run["report"]["metric"]
            scores = [report[stage] for stage in ("float", "inserted", "trained", "deployed")]
            if report["deployed"] is None and (verdict := report.get("verdict")):  # without labels: see `summary`
                metric, scores = verdict["metric"], [verdict["float_score"], None, None, verdict["deployed_score"]]
            integer = "{integer} of {total}".format(**report["weighted_nodes"])
            size, time = report["size"]["ratio"], report["latency"]["ratio"]
            yield name, metric, *(shown(metric, score) for score in scores), round(size, 3), round(time, 3), integer

    def differences(self) -> Iterator[tuple[str, ...]]:
        """One row for each setting in which runs differ."""
        flat = [dict(_flat({key: run[key] for key in ("quantization", "training")})) for run in self.runs.values()]
        for key in dict.fromkeys(key for one in flat for key in one):
            values = [json.dumps(one.get(key)) for one in flat]
            if len(set(values)) > 1:
                yield key, *values

    def to_json(self) -> str:
        """The figures and the settings that differ, as JSON text."""
        figures = [dict(zip(COLUMNS, row, strict=True)) for row in self.figures()]
        differing = {key: dict(zip(self.runs, values, strict=True)) for key, *values in self.differences()}
        return json.dumps({"runs": figures, "differences": differing}, indent=2)

    def sections(self) -> Sequence[Section]:
        """The parts of a page: figures, settings that differ, curves, and layers."""
        figures = Table(COLUMNS, list(self.figures()))
        differing = list(self.differences())
        settings = Table(("setting", *self.runs), differing, title="Settings in which they differ")
        said = [Text(f"{name}: onnxqat {run['version']}, {run['processor']}.") for name, run in self.runs.items()]
        blocks = [figures, settings if differing else Text("Their settings are the same."), *said]
        return [Section("runs", "Runs", blocks), *self._curves(), self._layers()]

    def to_html(self) -> str:
        """A page for a browser; needs the extra `report`."""
        return render("Comparison", [self])

    def __rich__(self) -> RenderableType:
        tables = [_rows(COLUMNS, self.figures())]
        if differing := list(self.differences()):
            tables.append(_rows(("setting", *self.runs), differing))
        return Group(*tables)

    def _curves(self) -> Iterator[Section]:
        lines = []
        for name, run in self.runs.items():
            steps = run["history"]["steps"]
            x, y = [one[0] for one in steps], [one[1] for one in steps]
            lines.append({"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y})
        titles = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "loss"}}}
        yield Section("curves", "Curves", [Chart("loss of a step", lines, titles)])

    def _layers(self) -> Section:
        """Signal over noise of each layer's output, run by run."""
        snrs = {name: {one["node"]: one["snr"] for one in run["layers"]["layers"]} for name, run in self.runs.items()}
        nodes = list(dict.fromkeys(node for found in snrs.values() for node in found))
        rows = [[node, *(found.get(node) for found in snrs.values())] for node in nodes]
        lines = [
            {"type": "scatter", "mode": "lines+markers", "name": name, "y": [found.get(node) for node in nodes]}
            for name, found in snrs.items()
        ]
        titles = {"xaxis": {"title": {"text": "layer"}}, "yaxis": {"title": {"text": "output SNR, dB"}}}
        return Section("layers", "Layers", [Chart("signal over noise", lines, titles), Table(("layer", *snrs), rows)])


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Ratio(_Part):
    ratio: float


class _Nodes(_Part):
    integer: int
    total: int


class _Verdict(_Part):
    metric: str
    float_score: float
    deployed_score: float


class _Report(_Part):
    metric: str
    of_float: float | None = Field(None, alias="float")
    inserted: float | None = None
    trained: float | None = None
    deployed: float | None = None
    weighted_nodes: _Nodes
    size: _Ratio
    latency: _Ratio
    verdict: _Verdict | None = None


class _History(_Part):
    steps: list[Annotated[list[float], Field(min_length=2)]]


class _Layer(_Part):
    node: str
    snr: float | None


class _Layers(_Part):
    layers: list[_Layer]


class _Run(_Part):
    """Parts of a `run.json` that are read."""

    version: str
    processor: str
    quantization: dict[str, Any]
    training: dict[str, Any]
    report: _Report
    history: _History
    layers: _Layers


COLUMNS = ("run", "metric", "float", "inserted", "trained", "deployed", "size of float", "time of float", "on integers")


def _read(folder: Path) -> Mapping[str, Any]:
    path = folder / RUN
    try:
        text = path.read_text(encoding="utf-8")
        _Run.model_validate_json(text)
        found = json.loads(text)
    except OSError as error:
        raise InputError(f"{folder}: holds no {RUN}; give folders that `onnxqat run --save-dir` wrote") from error
    except ValidationError as error:
        raise InputError(f"{one_line(f'{path}: is no run of onnxqat', error)}; save the run again") from error
    except ValueError as error:
        raise InputError(f"{path}: is no run of onnxqat; save the run again") from error
    return {**found, "report": {**dict.fromkeys(("float", "inserted", "trained", "deployed")), **found["report"]}}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, _brief(value)


def _brief(value: Any) -> Any:
    """A value as it is, but rules without the fields that they leave open."""
    if isinstance(value, list):
        return [_brief(one) for one in value]
    if isinstance(value, dict):
        return {key: _brief(one) for key, one in value.items() if one not in (None, [])}
    return value


def _rows(columns: Sequence[str], rows: Any) -> Rows:
    table = Rows(*columns)
    for row in rows:
        table.add_row(*cells(*("" if value is None else str(value) for value in row)))
    return table
