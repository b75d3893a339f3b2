"""Layers side by side: what quantization and deployment did to each, for reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table as Rows

from onnxqat.page import Section, framed, render
from onnxqat.terminal.plain import cells
from onnxqat.verification.fusion import Kind


@dataclass(frozen=True)
class Grid:
    """A quantizer, and how what it quantizes lies on its codes.

    Attributes:
        value: name of what it quantizes.
        bits: width of the codes.
        codes: lowest and highest code.
        symmetric: whether 0.0 is the code 0.
        granularity: in words.
        scale: smallest and largest scale.
        clipped: share of the values, 0 to 1, beyond the codes.
        snr: signal over quantization noise of these values, in dB; 200 where there is no noise, None where nothing was seen.
        drift: largest relative change of a scale through training; None: not known.
        edges: lowest and highest code of the histogram; what lies beyond is in its first and last bin.
        counts: histogram of the values in units of codes, before rounding.
    """

    value: str
    bits: int
    codes: tuple[int, int]
    symmetric: bool
    granularity: str
    scale: tuple[float, float]
    clipped: float | None
    snr: float | None
    drift: float | None
    edges: tuple[float, float]
    counts: tuple[int, ...]

    @property
    def how(self) -> str:
        """The quantizer in words."""
        return f"{self.bits} bits, {'symmetric' if self.symmetric else 'asymmetric'}, {self.granularity}"


@dataclass(frozen=True)
class Layer:
    """A computing node of the Q/DQ model.

    Attributes:
        node: its name.
        op_type: its operator.
        reads: names of the layers whose values it reads.
        weight: quantizer of its weight; None: there is none.
        input: quantizer of its first input; None: float.
        output: quantizer of its output; None: float.
        value: name of the value by which its output is judged: where it is quantized, behind an activation.
        snr: signal over noise of that value in the Q/DQ model, against the float model, in dB; None: not comparable.
        snr_deployed: the same of the deployed model, as the runtime executes it.
        kernel: kernel that the runtime executes for it; "" where it executes nothing, or there is no deployed model.
        kind: kind of that kernel; None where there is no deployed model.
        reason: why it is not an integer kernel.
        milliseconds: time for a batch in the runtime's profile; None: not told, or within another layer's.
    """

    node: str
    op_type: str
    reads: tuple[str, ...]
    weight: Grid | None
    input: Grid | None
    output: Grid | None
    value: str
    snr: float | None
    snr_deployed: float | None
    kernel: str = ""
    kind: Kind | None = None
    reason: str = ""
    milliseconds: float | None = None

    @property
    def bits(self) -> str:
        """Widths of weight and input: `W4A8`; empty where neither is quantized."""
        weight = "" if self.weight is None else f"W{self.weight.bits}"
        return weight + ("" if self.input is None else f"A{self.input.bits}")


@dataclass(frozen=True)
class Layers:
    """Result of `onnxqat.layers`; prints as a table, and is a part of a report's page.

    Attributes:
        samples: samples that it was measured on.
        layers: in order of execution.
        others: time of the deployed model in nodes that are no layer's, by operator: borders between float and integers, layouts,
            parts of operators that the runtime expands; None where it is not told.

    Example:
        ```python
        layers = onnxqat.layers("model.onnx", "model.qdq.onnx", "test.npz", "model.int8.onnx")
        worst = min((layer for layer in layers.layers if layer.snr is not None), key=lambda layer: layer.snr)
        print(worst.node, worst.snr)
        Path("report.html").write_text(layers.to_html())
        ```
    """

    samples: int
    layers: tuple[Layer, ...]
    others: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain dicts, lists, numbers and strings."""
        return asdict(self)

    def to_json(self) -> str:
        """The findings as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def sections(self) -> Sequence[Section]:
        """The parts of a page: the layers with their histograms, and the graph."""
        from onnxqat.search.layers.sections import sections

        return sections(self)

    def to_html(self) -> str:
        """A page of its own; see `Report.to_html`."""
        return render("Layers", [self])

    def _repr_html_(self) -> str:
        return framed(self.to_html())

    def __rich__(self) -> RenderableType:
        table = Rows("layer", "operator", "bits", "output SNR", "deployed", "clipped", "runs as")
        for one in self.layers:
            share = "" if one.output is None or one.output.clipped is None else f"{one.output.clipped:.2%}"
            table.add_row(
                *cells(one.node, one.op_type, one.bits, _db(one.snr), _db(one.snr_deployed), share, one.kernel)
            )
        return table


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
