"""Pages for a browser: one file that holds all it needs, made of sections of text, tables, charts and graphs.

It knows nothing of models: what is shown comes from whoever knows it, as the parts below. jinja2 writes the page, and plotly
draws in it.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from onnxqat.errors import MissingExtraError
from onnxqat.graph import files
from onnxqat.page.placing import placed

HERE = Path(__file__).parent
HTML = files.Kind("an HTML file", lambda path: path.read_bytes()[:100].lstrip().lower().startswith(b"<!doctype html"))

Cell = str | float | int | None


@dataclass(frozen=True)
class Chart:
    """A chart as plotly describes it.

    Attributes:
        title: what it shows.
        traces: plotly's traces, without colours: the page gives them its own.
        layout: what differs from the page's layout.
    """

    title: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["chart"] = "chart"

    def to_json(self) -> str:
        """The chart for the page's script; no text in it can end the script."""
        found = {"traces": list(self.traces), "layout": dict(self.layout)}
        return json.dumps(found, allow_nan=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Table:
    """A table that the reader can sort and, with more than a few rows, search.

    Attributes:
        columns: their titles.
        rows: texts and numbers; None is an empty cell.
        details: for each row, charts that it opens; empty: none.
        title: what it shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    details: Sequence[Sequence[Chart]] = ()
    title: str = ""
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Graph:
    """Nodes of a network, to pan, to zoom and to search, coloured by one of their figures.

    Attributes:
        nodes: their names, in an order in which each comes behind those that it reads.
        labels: a line about each.
        edges: pairs of numbers of nodes.
        colours: figures of each node, by what they are; None where there is none.
    """

    nodes: Sequence[str]
    labels: Sequence[str]
    edges: Sequence[tuple[int, int]]
    colours: Mapping[str, Sequence[float | None]]
    kind: Literal["graph"] = "graph"

    def to_json(self) -> str:
        """The graph, with a place for each node, for the page's script."""
        x, y = placed(len(self.nodes), self.edges)
        found = {"x": x, "y": y, "names": list(self.nodes), "labels": list(self.labels), "edges": list(self.edges)}
        return json.dumps({**found, "colours": dict(self.colours)}, allow_nan=False).replace("<", "\\u003c")


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading; `key` names it in the page's address."""

    key: str
    title: str
    blocks: Sequence[Chart | Table | Text | Graph]


class Shown(Protocol):
    """Parts that a page can have."""

    def sections(self) -> Sequence[Section]:
        """Its sections."""
        ...


def check_page() -> None:
    """Refuses to make a page where the libraries for it are missing.

    Raises:
        MissingExtraError: names the one that is, and the extra that brings it.
    """
    for name in ("jinja2", "plotly"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{name} is not installed; run `pip install 'onnxqat[report]'`") from error


def render(title: str, parts: Iterable[Shown]) -> str:
    """A page of all sections of the parts, as one HTML text that loads nothing from elsewhere.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    check_page()
    import jinja2

    sections = [section for part in parts for section in part.sections()]
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    template = environment.get_template("page.html")
    return template.render(title=title, sections=sections, style=style, script=script, library=_library())


def framed(page: str) -> str:
    """The page in a frame of its own, as a notebook shows it."""
    return f'<iframe srcdoc="{html.escape(page)}" style="width:100%;height:80vh;border:0"></iframe>'


def write(page: str, path: Path) -> None:
    """Writes a page, whole or not at all."""
    files.write_text(page, path, HTML)


def _cell(value: Cell) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@cache
def _library() -> str:
    """Plotly's script, packed: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
