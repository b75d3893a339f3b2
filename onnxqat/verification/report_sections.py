"""The report of verification as parts of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from onnxqat.page import Cell, Section, Table, Text
from onnxqat.process.processor import processor
from onnxqat.verification.measures import shown

if TYPE_CHECKING:
    from onnxqat.verification.report import Report


def sections(report: Report) -> Sequence[Section]:
    """The sections `summary` and `kernels`."""
    return _summary(report), _kernels(report)


def _summary(report: Report) -> Section:
    states = Table(
        ("model", report.metric, "size, MB", "latency, ms"), list(_states(report)), title="What each stage did"
    )
    facts: list[tuple[Cell, Cell]] = [
        ("runtime", report.runtime),
        ("processor", processor()),
        ("samples", report.samples),
        ("same answers, Q/DQ and deployed", None if report.agreement is None else f"{report.agreement:.2%}"),
        ("largest difference of an output", f"{report.worst.steps:.2f} steps of {report.worst.step:.3g}"),
        ("layers on integer kernels", "{} of {}".format(*report.integer_count())),
        ("size, of float", f"{report.size.ratio:.3f}"),
        (
            f"latency, of float (batch {report.latency.batch}, {report.latency.threads} threads)",
            f"{report.latency.ratio:.3f}",
        ),
    ]
    said = [] if report.verdict is None else [Text(report.verdict.sentence)]
    hints = [] if report.hint is None else [Text(f"Note: {report.hint}.")]
    table = Table(("", "figure"), [row for row in facts if row[1] is not None], title="Deployed model")
    return Section("summary", "Summary", [*said, states, Text(report.saturation.proof), table, *hints])


def _states(report: Report) -> Iterator[Sequence[Cell]]:
    """One row for each state of the model whose score is known, and one for the other kind of processor."""
    metric, size, latency = report.metric, report.size, report.latency
    verdict, other = report.verdict, report.saturation.other
    judged = None if verdict is None or verdict.metric != metric else verdict
    before = "" if judged is None else shown(metric, judged.float_score)
    inserted = None if judged is None else judged.evidence.inserted_score
    yield "float", before, round(size.float_model / 1e6, 4), round(latency.float_model, 3)
    if inserted is not None:
        yield "post-training", shown(metric, inserted), None, None
    yield "Q/DQ, quantizers in float", shown(metric, report.trained), None, None
    yield (
        "deployed, this processor",
        shown(metric, report.deployed),
        round(size.deployed / 1e6, 4),
        round(latency.deployed, 3),
    )
    if other is None:
        there = "the same integers" if not report.saturation.unknown else "not known for every layer"
        yield "deployed, the other kind of processor", there, None, None
    else:
        kind = "without VNNI" if other.saturates else "with VNNI"
        yield f"deployed, {kind} (emulated)", shown(metric, other.score), None, None


def _kernels(report: Report) -> Section:
    counts = Counter((k.op_type, k.kernel or "(merged or folded)", k.kind) for k in report.kernels)
    kinds = Table(("operator", "runs as", "kind", "nodes"), [(*key, count) for key, count in sorted(counts.items())])
    reasons = [(k.node, k.op_type, k.kernel, k.purpose or k.reason) for k in report.kernels if k.reason or k.purpose]
    blocks = [kinds]
    if reasons:
        blocks.append(Table(("node", "operator", "runs as", "why"), reasons, title="Not on integers, and why"))
    return Section("kernels", "Kernels", blocks)
