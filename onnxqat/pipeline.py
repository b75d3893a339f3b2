"""The way of a model through the stages, in reading order: insert → train → fold → verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from rich.table import Table

from onnxqat import data as datasets
from onnxqat.config import Config
from onnxqat.fold import fold
from onnxqat.graph import io
from onnxqat.insert import insert
from onnxqat.train.losses import Loss
from onnxqat.train.optimizers import AdamW
from onnxqat.train.schedules import Cosine
from onnxqat.train.trainer import Trainer
from onnxqat.verify.host import RuntimeName
from onnxqat.verify.report import Report
from onnxqat.verify.run import evaluate, verify

#: Steps of linear growth from 0: AdamW's first steps at full rate throw the weights of low-bit layers about.
WARMUP_STEPS = 20


@dataclass(frozen=True)
class Training:
    """How the train stage runs.

    Attributes:
        loss: see `Trainer`.
        epochs: passes over the data.
        lr: largest learning rate; it falls to 0 along a cosine.
        seed: what the order of the data is drawn from.
        freeze: initializers or nodes that are left as they are.
        teacher: model for the loss `distill`.
    """

    loss: Loss = "cross_entropy"
    epochs: int = 3
    lr: float = 1e-4
    seed: int = 0
    freeze: tuple[str, ...] = ()
    teacher: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        float_score: accuracy of the float model on the data it was verified on; None without labels.
        inserted_score: accuracy after insertion, before training.
        trained: the Q/DQ model after it.
        deployed: what it was folded into.
        report: how the two compare in a runtime.
    """

    float_score: float | None
    inserted_score: float | None
    trained: onnx.ModelProto
    deployed: onnx.ModelProto
    report: Report


def run(  # noqa: PLR0913  (all stages' arguments in one call)
    model: io.ModelLike,
    data: str,
    config: Config,
    training: Training,
    calibration: str | None = None,
    validation: str | None = None,
    *,
    batch_size: int = 64,
    runtime: RuntimeName = "ort",
    interpreter: Path | None = None,
) -> Outcome:
    """All stages in order. Calibrates on `data` where no `calibration` is given; verifies on `validation`, or else on `data`."""
    judged = datasets.read(validation if validation is not None else data, batch_size)
    inserted = insert(model, datasets.read(calibration if calibration is not None else data, batch_size), config)
    training_run = trainer(inserted, training)
    training_run.fit(datasets.read(data, batch_size), training.epochs, judged if validation is not None else None)
    trained = training_run.model()
    deployed = fold(trained)
    report = verify(trained, deployed, judged, runtime=runtime, interpreter=interpreter)
    scores = [
        evaluate(m, judged, runtime=runtime, interpreter=interpreter) if report.trained is not None else None
        for m in (model, inserted)
    ]
    return Outcome(scores[0], scores[1], trained, deployed, report)


def summary(outcome: Outcome) -> Table:
    """One row per state of the model: what each stage did to its accuracy, and what was gained for it."""
    table = Table(
        "model",
        outcome.report.metric,
        "size",
        "latency",
        "layers on integer kernels",
        title="summary",
        title_justify="left",
    )
    report = outcome.report
    integer, total = report.integer_count()
    size, latency = report.size, report.latency
    table.add_row(
        "float", _percent(outcome.float_score), f"{size.float_model / 1e3:.0f} kB", f"{latency.float_model:.2f} ms", ""
    )
    table.add_row("inserted", _percent(outcome.inserted_score), "", "", "")
    table.add_row("trained", _percent(report.trained), "", "", "")
    table.add_row(
        "deployed",
        _percent(report.deployed),
        f"{size.deployed / 1e3:.0f} kB",
        f"{latency.deployed:.2f} ms",
        f"{integer} of {total}",
    )
    return table


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f} %"


def trainer(qdq: io.ModelLike, training: Training) -> Trainer:
    """A trainer with the settings of the command line."""
    return Trainer(
        qdq,
        loss=training.loss,
        optimizer=AdamW(lr=training.lr),
        schedule=Cosine(warmup_steps=WARMUP_STEPS),
        seed=training.seed,
        freeze=training.freeze,
        teacher=training.teacher,
    )
