"""Runs that raise precision step by step until the deployed model loses no more than allowed, and train only where they must."""

from __future__ import annotations

from dataclasses import replace

import onnx
from rich.table import Table

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
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


def path_table(outcome: Outcome) -> Table:
    """One row for each step, and one for training where it came to that, which the report judges."""
    report, path = outcome.report, outcome.path
    table = Table("step", report.metric, "drop", "holds", title="raising precision", title_justify="left")
    unit = measure(report.metric).unit
    for step in path:
        row = (step.what, shown(report.metric, step.score), f"{step.drop:.3g} {unit}", "yes" if step.holds else "no")
        table.add_row(*cells(*row))
    if outcome.was_trained and report.verdict is not None:
        holds = "no" if report.verdict.drop > report.verdict.allowed else "yes"
        score = shown(report.metric, report.verdict.deployed_score)
        table.add_row(*cells(f"trained, on {outcome.judged_on}", score, f"{report.verdict.drop:.3g} {unit}", holds))
    return table
