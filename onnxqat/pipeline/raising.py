"""Runs that raise precision step by step until the deployed model loses no more than allowed, and train only where they must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx
from rich.console import RenderableType
from rich.table import Table

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.page import Section, Text
from onnxqat.page import Table as Rows
from onnxqat.pipeline import Outcome, calibrating, ready, run, untrained
from onnxqat.pipeline.recovery import Keeping
from onnxqat.pipeline.request import Data, Judge, Training
from onnxqat.search.raising.steps import raised
from onnxqat.terminal.plain import cells
from onnxqat.terminal.quiet import quiet
from onnxqat.verification.judge import Verdict
from onnxqat.verification.measures import measure, shown


def run_raising(
    model: io.ModelLike, data: Data, config: Config, training: Training, judge: Judge, keeping: Keeping
) -> Outcome | None:
    """Runs all stages as `pipeline.run` does, with the least precision that holds.

    Raises:
        InputError: there is nothing to judge by, or this is one of several processes.
    """
    if training.distributed:
        raise InputError(
            "--raise-precision: works in one process; start it without torchrun, and train with what it writes"
        )
    model, config, training, judge = ready(model, data, config, training, judge)
    judged = data.read(data.validation or data.test)  # where there is a choice, test data has no say in the settings

    def inserted(settings: Config) -> onnx.ModelProto:
        with quiet("onnxqat.insertion"):
            calibration = data.read(data.calibration)
            return insert(model, calibration, settings, sample_axis=training.labelling.sample_axis)

    def verdict(qdq: onnx.ModelProto) -> Verdict | None:
        with quiet("onnxqat.verification"), quiet("onnxqat.folding"):
            return judge.compare((qdq, fold(qdq)), model, judged).verdict

    found = raised(model, data.read(data.calibration), calibrating(config, data), inserted, verdict)
    if found is None:
        raise InputError(
            "--raise-precision: there are neither labels nor class scores to judge by; add labels to the data"
        )
    if found.holds:
        outcome: Outcome | None = untrained(model, found.model, data, found.config, judge, keeping)
    else:
        outcome = run(model, data, found.config, training, judge, keeping)
    return None if outcome is None else replace(outcome, path=found.path)


@dataclass(frozen=True)
class Way:
    """The way of a run to the precision that it needs: prints as a table, and is a part of a report's page."""

    outcome: Outcome

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """One row for each step, and one for training where it came to that, which the report judges."""
        report, path = self.outcome.report, self.outcome.path
        unit = measure(report.metric).unit
        for step in path:
            holds = "yes" if step.holds else "no"
            yield step.what, shown(report.metric, step.score), f"{step.drop:.3g} {unit}", holds
        if path and self.outcome.was_trained and report.verdict is not None:
            holds = "yes" if report.verdict.drop <= report.verdict.allowed else "within noise"
            holds = "no" if report.verdict.exceeded else holds
            score = shown(report.metric, report.verdict.deployed_score)
            yield f"trained, on {self.outcome.judged_on}", score, f"{report.verdict.drop:.3g} {unit}", holds

    def sections(self) -> Sequence[Section]:
        """The part of a page; none where precision was not to be raised."""
        if not self.outcome.path:
            return []
        about = "Steps to more precision, the cheapest first, until the deployed model loses no more than allowed."
        return [Section("precision", "Precision", [Text(about), Rows(self._columns, list(self.rows()))])]

    def __rich__(self) -> RenderableType:
        table = Table(*self._columns, title="raising precision", title_justify="left")
        for row in self.rows():
            table.add_row(*cells(*row))
        return table

    @property
    def _columns(self) -> tuple[str, ...]:
        return "step", self.outcome.report.metric, "drop", "holds"
