"""Layers as parts of a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxqat.page import Cell, Chart, Graph, Section, Table, Text
from onnxqat.search.layers import Grid, Layer, Layers

COLUMNS = (
    "layer",
    "operator",
    "bits",
    "scheme",
    "weight SNR, dB",
    "output SNR, dB",
    "deployed, dB",
    "clipped, %",
    "scale drift, %",
    "runs as",
    "kind",
    "time, ms",
    "why not on integers",
)
#: Operators that are named of those that are no layer's.
OTHERS = 6
#: Codes up to which each is a line in a histogram.
LINES = 16


def sections(found: Layers) -> Sequence[Section]:
    """The sections `layers` and `graph`."""
    about = (
        f"Measured on {found.samples} samples. SNR is signal over noise against the float model: of a weight on its own grid, "
        "of the layer's output in the Q/DQ model, and of the same value in the deployed model as the runtime executes it; "
        "200 dB means equal. Open a row for the histograms of weight, input and output on their codes; dashed lines are the "
        "lowest and the highest."
    )
    table = Table(COLUMNS, [_row(one) for one in found.layers], [_charts(one) for one in found.layers])
    blocks: list[Text | Table] = [Text(about), table]
    if found.others:
        most = sorted(found.others.items(), key=lambda one: -one[1])[:OTHERS]
        parts = ", ".join(f"{name} {time:.3g} ms" for name, time in most)
        blocks.append(Text(f"Nodes that are no layer's take {sum(found.others.values()):.3g} ms a batch: {parts}."))
    return Section("layers", "Layers", blocks), Section("graph", "Graph", [_graph(found)])


def _row(one: Layer) -> list[Cell]:
    grids = [grid for grid in (one.weight, one.input, one.output) if grid is not None]
    drifts = [grid.drift for grid in grids if grid.drift is not None]
    clipped = None if one.output is None or one.output.clipped is None else 100 * one.output.clipped
    return [
        one.node,
        one.op_type,
        one.bits,
        one.weight.how if one.weight is not None else one.input.how if one.input is not None else "float",
        None if one.weight is None else one.weight.snr,
        one.snr,
        one.snr_deployed,
        clipped,
        100 * max(drifts) if drifts else None,
        one.kernel,
        one.kind,
        one.milliseconds,
        one.reason,
    ]


def _charts(one: Layer) -> list[Chart]:
    grids = (("weight", one.weight), ("input", one.input), ("output", one.output))
    return [_histogram(what, grid) for what, grid in grids if grid is not None and grid.counts]


def _histogram(what: str, grid: Grid) -> Chart:
    edges = np.linspace(*grid.edges, len(grid.counts) + 1)
    middles = ((edges[:-1] + edges[1:]) / 2).round(3).tolist()
    low, high = grid.codes
    every = range(low, high + 1) if high - low < LINES else ()
    shapes = [_line(code, {"width": 0.5, "dash": "dot"}) for code in every]
    shapes += [_line(end, {"width": 1.5, "dash": "dash"}) for end in (low - 0.5, high + 0.5)]
    scale = f"{grid.scale[0]:.3g}" if grid.scale[0] == grid.scale[1] else f"{grid.scale[0]:.3g} to {grid.scale[1]:.3g}"
    share = "" if grid.clipped is None else f", {grid.clipped:.2%} clipped"
    noise = "" if grid.snr is None else f", {grid.snr:.1f} dB"
    title = f"{what} {grid.value}: {grid.how}, scale {scale}{share}{noise}"
    layout = {
        "shapes": shapes,
        "xaxis": {"title": {"text": "code"}},
        "yaxis": {"title": {"text": "values"}, "type": "log"},
    }
    return Chart(title, [{"type": "bar", "x": middles, "y": list(grid.counts), "name": what}], layout)


def _line(x: float, line: dict[str, object]) -> dict[str, object]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _graph(found: Layers) -> Graph:
    numbers = {one.node: number for number, one in enumerate(found.layers)}
    edges = [
        (numbers[name], number) for number, one in enumerate(found.layers) for name in one.reads if name in numbers
    ]
    labels = [
        "<br>".join(
            f"{title}: {text}" for title, value in zip(COLUMNS, _row(one), strict=True) if (text := _short(value))
        )
        for one in found.layers
    ]
    return Graph(
        nodes=list(numbers),
        labels=labels,
        edges=edges,
        colours={
            "output SNR, dB": [one.snr for one in found.layers],
            "deployed SNR, dB": [one.snr_deployed for one in found.layers],
            "time, ms": [one.milliseconds for one in found.layers],
        },
    )


def _short(value: Cell) -> str:
    """A cell for plotly, which reads tags in its labels."""
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("<", "‹")
