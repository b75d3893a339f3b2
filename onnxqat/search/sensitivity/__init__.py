"""Cost of each quantizer alone, ranked; and the configuration that spares the worst."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table as Rows

from onnxqat.config import Config
from onnxqat.config_parts import Override, Select
from onnxqat.errors import InputError
from onnxqat.page import Cell, Chart, Section, Table, Text, framed, render
from onnxqat.terminal.plain import Terminal, cells
from onnxqat.verification.measures import measure as named_measure
from onnxqat.verification.measures import shown
from onnxqat.verification.report import TEXT_WIDTH

Part = Literal["weights", "activations"]


@dataclass(frozen=True)
class Cost:
    """Cost of quantizing one value to one width, all else in float.

    Attributes:
        value: name of the value.
        nodes: names of the nodes that read it.
        part: "weights" or "activations".
        bits: width of the codes.
        snr: signal over noise of the model's outputs, in dB, the least of them; 200 where nothing changes.
        score: the metric with this alone quantized; None where none was asked for.
    """

    value: str
    nodes: tuple[str, ...]
    part: Part
    bits: int
    snr: float
    score: float | None


@dataclass(frozen=True)
class Sensitivity:
    """Result of `onnxqat.sensitivity`; prints as a table, the costliest first, and is a part of a report's page.

    Attributes:
        samples: samples that it was measured on.
        config: settings that it was measured for.
        metric: name of the metric; None where none was asked for.
        score: the metric of the float model.
        costs: one for each quantized value and width, in order of execution.

    Example:
        ```python
        found = onnxqat.sensitivity("model.onnx", "train.npz", onnxqat.Config(weight_bits=4, activation_bits=4))
        print(found.ranked[0].nodes, found.ranked[0].snr)
        qdq = onnxqat.insert("model.onnx", "train.npz", found.sparing(20.0))
        ```
    """

    samples: int
    config: Config
    metric: str | None
    score: float | None
    costs: tuple[Cost, ...]

    @property
    def ranked(self) -> tuple[Cost, ...]:
        """The costs, the largest first: by signal over noise, or by the metric where there is one."""
        return tuple(sorted(self.costs, key=lambda cost: (-self._drop(cost), cost.snr)))

    def sparing(self, least: float) -> Config:
        """The configuration, with more bits or float for what would leave less signal over noise, in dB, at its width.

        Each value gets the fewest of the measured bits, no fewer than the configuration's, with which it alone leaves so
        much; a node for which none does stays in float.

        Args:
            least: signal over noise of the outputs that each quantizer alone must leave.

        Raises:
            InputError: it is no number.
        """
        check_least(least)
        overrides, floats = [], []
        for node, parts in self._by_node().items():
            widths = {part: self._enough(costs, part, least) for part, costs in parts.items()}
            if None in widths.values():
                floats.append(Select(name=node))
                continue
            asked = {part: self._asked(part) for part in widths}
            raised: dict[str, Any] = {_FIELDS[part]: bits for part, bits in widths.items() if bits != asked[part]}
            if raised and "weights" in parts:  # other nodes read 8 bits anyway
                overrides.append(Override(name=node, **raised))
        return self.config.adding(overrides, floats)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain dicts, lists, numbers and strings."""
        costs = [asdict(cost) for cost in self.ranked]
        return {"samples": self.samples, "metric": self.metric, "float": self.score, "costs": costs}

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def sections(self) -> Sequence[Section]:
        """The part of a page."""
        about = (
            f"Each value alone quantized, all else in float, on {self.samples} samples: signal over noise of the model's "
            "outputs, the least of them. The lower, the more it costs."
        )
        columns = ("value", "read by", "what", "bits", "SNR, dB", *([] if self.metric is None else [self.metric]))
        rows: list[Sequence[Cell]] = [
            (c.value, ", ".join(c.nodes), c.part, c.bits, c.snr, *self._shown(c)) for c in self.ranked
        ]
        lines = [self._line(part, bits) for part, bits in dict.fromkeys((c.part, c.bits) for c in self.costs)]
        titles = {"xaxis": {"title": {"text": "in order of execution"}}, "yaxis": {"title": {"text": "SNR, dB"}}}
        chart = Chart("signal over noise, each value alone quantized", lines, titles)
        return [Section("sensitivity", "Sensitivity", [Text(about), chart, Table(columns, rows)])]

    def to_html(self) -> str:
        """A page of its own; see `Report.to_html`."""
        return render("Sensitivity", [self])

    def _repr_html_(self) -> str:
        return framed(self.to_html())

    def __str__(self) -> str:
        text = io.StringIO()
        Terminal(file=text, width=TEXT_WIDTH).print(self)
        return text.getvalue().rstrip("\n")

    def __rich__(self) -> RenderableType:
        last = [] if self.metric is None else [self.metric]
        table = Rows(
            "value", "what", "bits", "output SNR", *last, title=f"{self.samples} samples", title_justify="left"
        )
        for cost in self.ranked:
            table.add_row(*cells(cost.value, cost.part, str(cost.bits), f"{cost.snr:.1f} dB", *self._shown(cost)))
        return table

    def _shown(self, cost: Cost) -> list[str]:
        return [] if self.metric is None else [shown(self.metric, cost.score)]

    def _drop(self, cost: Cost) -> float:
        if self.metric is None or cost.score is None:
            return 0.0
        return float(named_measure(self.metric).drop(self.score, cost.score, 0.0))

    def _by_node(self) -> dict[str, dict[Part, list[Cost]]]:
        """Costs of each node that reads quantized values, by what they are of."""
        found: dict[str, dict[Part, list[Cost]]] = {}
        for cost in self.costs:
            for node in cost.nodes:
                found.setdefault(node, {}).setdefault(cost.part, []).append(cost)
        return found

    def _asked(self, part: Part) -> int:
        return int(getattr(self.config, _FIELDS[part]))

    def _enough(self, costs: Iterable[Cost], part: Part, least: float) -> int | None:
        """Fewest bits with which all these values leave enough; None where none do."""
        by_bits: dict[int, list[float]] = {}
        for cost in costs:
            by_bits.setdefault(cost.bits, []).append(cost.snr)
        enough = [bits for bits, snrs in by_bits.items() if min(snrs) >= least and bits >= self._asked(part)]
        return min(enough, default=None)

    def _line(self, part: Part, bits: int) -> dict[str, Any]:
        chosen = [cost for cost in self.costs if (cost.part, cost.bits) == (part, bits)]
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{part}, {bits} bits",
            "x": list(range(len(chosen))),
            "y": [cost.snr for cost in chosen],
            "text": [cost.value.replace("<", "‹") for cost in chosen],
        }


_FIELDS: dict[Part, str] = {"weights": "weight_bits", "activations": "activation_bits"}


def check_least(least: float) -> None:
    """Raises InputError for a bound that no signal over noise can be compared with."""
    if math.isnan(least):
        raise InputError("least is nan; it must be a number of dB, such as 20")


def check_widths(widths: Sequence[int]) -> None:
    """Raises InputError for widths that codes cannot have."""
    wrong = [bits for bits in widths if not 2 <= bits <= 8]
    if wrong or not widths:
        raise InputError(f"widths {list(widths)}: give one or more from 2 to 8")
