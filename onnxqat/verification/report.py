"""Report of verification, as data, as JSON and as text for a terminal."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxqat.errors import MissingExtraError
from onnxqat.page import Section, Shown, framed, render
from onnxqat.terminal.plain import Terminal, cells
from onnxqat.verification.compare import OutputDifference
from onnxqat.verification.divergence import Divergence
from onnxqat.verification.entries import Sizes
from onnxqat.verification.fusion import Kernel, Placed
from onnxqat.verification.judge import Verdict
from onnxqat.verification.measures import shown
from onnxqat.verification.saturation import Saturation

#: Beyond this many output steps the report says where the difference arises.
ALARMING_STEPS = 2.0
_REMEDY = (
    "Remedy: insert again with overflow_fix 'pairs' (the default): the same integers everywhere, at no cost in time."
)
_SLOWER_REMEDY = " Or set session.x64quantprecision=1 on processors without VNNI: exact too, 1.2 to 1.5 times slower."
#: Node names listed for one reason in the text.
NAMES_SHOWN = 4
#: Columns of the report as text.
TEXT_WIDTH = 140


@dataclass(frozen=True)
class Size:
    """Bytes of the models' files, external data included."""

    deployed: int
    float_model: int

    @property
    def ratio(self) -> float:
        """Deployed over float."""
        return self.deployed / self.float_model


@dataclass(frozen=True)
class Latency:
    """Time per batch; float and deployed model ran in turn in the same process.

    Attributes:
        deployed: median of the deployed model in milliseconds.
        float_model: median of the float model in milliseconds.
        ratio: median of deployed over float, round by round.
        rounds: how many.
        batch: samples in a batch.
        threads: threads of the runtime.
    """

    deployed: float
    float_model: float
    ratio: float
    rounds: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Report:
    """Behaviour of a deployed model in a runtime, compared with the Q/DQ model it was folded from.

    Attributes:
        runtime: name and version.
        samples: how many samples both models saw.
        metric: name of the metric.
        trained: the metric of the Q/DQ model, its quantizers computed in float as in training; None without labels.
        deployed: the metric of the deployed model, as the runtime executes it; None without labels.
        agreement: share of predictions (largest score of the first output) that are equal; None where there are no scores.
        outputs: largest difference of each output.
        divergence: where the difference arises, looked up if an output differs by more than two steps; None otherwise.
        kernels: fate of each computing node of the deployed model.
        saturation: whether x86 processors without VNNI compute the same integers, and their results where they do not.
        size: sizes of the models' files.
        latency: times per batch of both models.
        verdict: comparison of the deployed with the float model; None if none was given, or nothing can be judged.
        hint: what to know of the runtime: that the model was not made for it, or that it simulates 16 bits; None: nothing.
        placed: how the model is divided between an NPU and the CPU; None where the runtime has no NPU.
        stands_for: title of the runtime that the model is for, where the answers are only simulated and kernels judged by the
            graph's structure; "" where that runtime has run.

    Example:
        ```python
        report = onnxqat.verify("model.qdq.onnx", "model.int8.onnx", "test.npz", float_model="model.onnx")
        print(report.deployed, report.agreement, report.size.ratio)
        Path("report.json").write_text(report.to_json())
        ```
    """

    runtime: str
    samples: int
    metric: str
    trained: float | None
    deployed: float | None
    agreement: float | None
    outputs: tuple[OutputDifference, ...]
    divergence: Divergence | None
    kernels: tuple[Kernel, ...]
    saturation: Saturation
    size: Size
    latency: Latency
    verdict: Verdict | None = None
    hint: str | None = None
    placed: Placed | None = None
    stands_for: str = ""

    @property
    def worst(self) -> OutputDifference:
        """The output that differs most, in steps."""
        return max(self.outputs, key=lambda output: output.steps)

    @property
    def not_integer(self) -> tuple[Kernel, ...]:
        """The nodes that run in float."""
        return tuple(k for k in self.kernels if k.kind in ("float", "weight-only"))

    @property
    def against_the_model(self) -> tuple[Kernel, ...]:
        """The layers of float weights that the runtime quantizes by itself."""
        return tuple(k for k in self.kernels if k.kind == "integer" and k.reason)

    def integer_count(self, *, weighted: bool = True) -> tuple[int, int]:
        """(nodes on integer kernels, nodes) of the layers with weights, or of all computing nodes."""
        counted = [k for k in self.kernels if k.kind != "absorbed" and (k.is_weighted or not weighted)]
        return sum(k.kind == "integer" for k in counted), len(counted)

    @property
    def weight_only_layers(self) -> int:
        """Number of layers with weights that run on kernels of float activations and integer weights."""
        return sum(k.kind == "weight-only" and k.is_weighted for k in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, numbers and strings."""
        found = asdict(self)
        for output, plain in zip(self.outputs, found["outputs"], strict=True):
            plain["steps"] = output.steps
        found["size"]["ratio"] = self.size.ratio
        found["verdict"] = self.verdict and self.verdict.to_dict()
        whole = {name: getattr(self.saturation, name) for name in ("proof", "pairs", "can_saturate")}
        found = {"saturation": {**whole, **found.pop("saturation")}, **found}
        for key, weighted in (("weighted_nodes", True), ("nodes", False)):
            integer, total = self.integer_count(weighted=weighted)
            found[key] = {"integer": integer, "total": total}
        return found

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def sections(self) -> Sequence[Section]:
        """The report's own parts of a page."""
        from onnxqat.verification.report_sections import sections

        return sections(self)

    def to_html(self, *parts: Shown) -> str:
        """A page for a browser: one text that loads nothing from elsewhere; needs the extra `report`.

        Args:
            parts: what else it shows: `onnxqat.layers(…)`, `onnxqat.sensitivity(…)`, a `callbacks.History`.

        Raises:
            MissingExtraError: the extra is not installed.
        """
        return render(f"Report: {self.runtime}", [self, *parts])

    def _repr_html_(self) -> str | None:
        try:
            return framed(self.to_html())
        except MissingExtraError:
            return None  # the notebook shows the text

    def __str__(self) -> str:
        text = io.StringIO()
        Terminal(file=text, width=TEXT_WIDTH).print(self)
        return text.getvalue().rstrip("\n")

    def __rich__(self) -> RenderableType:
        return Group(
            *([] if self.hint is None else [Text(f"note: {self.hint}")]),
            Text(self._beginning),
            *self._elsewhere(),
            self._figures(),
            *self._where(),
            _kernel_table(self.kernels),
            *_reasons("quantized against the model", self.against_the_model),
            *_on_purpose(k for k in self.kernels if k.purpose and k.kind != "integer"),
            *_reasons("float", (k for k in self.not_integer if not k.purpose and k.kind == "float")),
            *_reasons("weight-only", (k for k in self.not_integer if k.reason and k.kind == "weight-only")),
        )

    @property
    def _beginning(self) -> str:
        if self.stands_for:
            return (
                f"{self.stands_for} has not run: answers are simulated, quantizers in float; kernels are by structure."
            )
        return self.saturation.proof if self.placed is None else self.placed.sentence

    def _figures(self) -> Table:
        table = Table(title=f"{self.runtime}, {self.samples} samples", title_justify="left")
        for name in ("", "Q/DQ model", "deployed"):
            table.add_column(name, justify="left" if not name else "right")
        if self.deployed is not None and self.trained is not None:
            table.add_row(*cells(self.metric), f"{self.trained:.4f}", f"{self.deployed:.4f}")
        if self.agreement is not None:
            table.add_row("same top-1", "", f"{self.agreement:.2%}")
        for output in self.outputs:
            if output.sizes is not None:
                table.add_row(f"entries of {output.output}", *_entries(output.sizes))
            if output.masked:
                table.add_row(f"infinite in only one model, of {output.output}", "", str(output.masked))
            if not output.batches:
                continue
            steps = f"{output.largest:.3g} = {output.steps:.2f} steps of {output.step:.3g} ({output.step_from})"
            table.add_row(*cells(f"largest difference of {output.output}"), "", steps)
        weighted, layers = self.integer_count()
        nodes, total = self.integer_count(weighted=False)
        table.add_row("layers on integer kernels", "", f"{weighted} of {layers}")
        if self.weight_only_layers:
            table.add_row("layers on kernels of integer weights", "", f"{self.weight_only_layers} of {layers}")
        table.add_row("nodes on integer kernels", "", f"{nodes} of {total}")
        table.add_section()
        table.add_row("", "float model", "deployed")
        if self.verdict is not None:
            scores = (self.verdict.float_score, self.verdict.deployed_score)
            table.add_row(self.verdict.metric, *(shown(self.verdict.metric, score) for score in scores))
            table.add_row("deployed against float", "", self.verdict.comparison)
        ratio = f"{self.size.deployed / 1e6:.3f} MB ({self.size.ratio:.3f} of float)"
        table.add_row("size", f"{self.size.float_model / 1e6:.3f} MB", ratio)
        time = self.latency
        emulated = "" if self.placed is None and not self.stands_for else ", emulated"
        label = f"latency, batch {time.batch}, {time.threads} threads{emulated}"
        table.add_row(label, f"{time.float_model:.2f} ms", f"{time.deployed:.2f} ms ({time.ratio:.3f} of float)")
        return table

    def _elsewhere(self) -> list[RenderableType]:
        """This machine beside the other kind of processor, where they compute different integers."""
        if not self.saturation.can_saturate:
            return []
        remedy = _REMEDY + _SLOWER_REMEDY * self.runtime.startswith("onnxruntime")
        return [*self._scores_elsewhere(), self.saturation.table(), Text(remedy)]

    def _scores_elsewhere(self) -> Iterator[RenderableType]:
        other = self.saturation.other
        if other is None:
            return
        table = Table("", "this machine", "without VNNI" if other.saturates else "with VNNI")
        rows = (
            (self.metric, self.deployed, other.score, "{:.4f}"),
            ("same top-1 as the Q/DQ model", self.agreement, other.agreement, "{:.2%}"),
            ("same top-1 as this machine", None, other.same_as_here, "{:.2%}"),
        )
        for label, here, there, form in rows:
            if there is not None:
                table.add_row(label, "" if here is None else form.format(here), form.format(there))
        yield table

    def _where(self) -> list[Text]:
        if self.divergence is None:
            return []
        found = self.divergence
        if not found.compared:
            text = "Where it arises: the two models have no intermediate value of the same name to compare."
        elif found.value is None:
            text = f"Where it arises: none of {found.compared} quantized values before differs by more than one step."
        else:
            text = (
                f"Where it arises: {found.value!r}, computed by {found.op_type} {found.node!r}, is the first of {found.compared} "
                f"quantized values to differ by more than one step ({found.steps:.1f})."
            )
        if not found.undisturbed:
            text += " Reading these values changed the deployed model's outputs, so other kernels may have run."
        return [Text(text)]


def _entries(sizes: Sizes) -> tuple[str, str]:
    """Returns the number of entries that each model gave, in the batches in which their numbers differ."""
    shared = "" if sizes.shared is None else f", {sizes.shared} in both"
    return str(sizes.trained), f"{sizes.deployed}{shared} ({sizes.batches} batches differ in size)"


def _kernel_table(kernels: Iterable[Kernel]) -> Table:
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for kernel in kernels:
        counts[kernel.op_type, kernel.kernel or "(none: merged or folded)", kernel.kind] += 1
    table = Table("operator", "runs as", "kind", "nodes")
    for (op_type, name, kind), count in sorted(counts.items()):
        table.add_row(op_type, name, kind, str(count))
    return table


def _on_purpose(kernels: Iterable[Kernel]) -> list[Text]:
    """One line for all nodes that `insert` left in float."""
    counts = Counter((kernel.op_type, kernel.purpose) for kernel in kernels)
    parts = [f"{count} {op_type} ({purpose})" for (op_type, purpose), count in counts.items()]
    return [Text(f"float on purpose: {'; '.join(parts)}")] if parts else []


def _reasons(what: str, kernels: Iterable[Kernel]) -> list[Text]:
    """One line for each reason, with the nodes it holds for."""
    by_reason: dict[tuple[str, str], list[str]] = defaultdict(list)
    for kernel in kernels:
        by_reason[kernel.op_type, kernel.reason].append(kernel.node)
    lines = []
    for (op_type, reason), names in by_reason.items():
        listed = ", ".join(map(repr, names[:NAMES_SHOWN]))
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        lines.append(Text(f"{what}: {op_type} {listed}{more}: {reason}"))
    return lines
