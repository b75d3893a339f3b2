"""The way of a model through the stages, in reading order: insert → train → fold → verify."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from onnxqat import data as datasets
from onnxqat.config import Config, Range
from onnxqat.distributed import rank
from onnxqat.fold import fold
from onnxqat.graph import io
from onnxqat.insert import insert
from onnxqat.labels import Labelling
from onnxqat.train.losses import Loss
from onnxqat.train.optimizers import AdamW
from onnxqat.train.schedules import Cosine
from onnxqat.train.trainer import Trainer
from onnxqat.verify.host import RuntimeName
from onnxqat.verify.report import Report
from onnxqat.verify.run import evaluate, verify

#: Steps of linear growth from 0: AdamW's first steps at full rate throw the weights of low-bit layers about.
WARMUP_STEPS = 20
#: Samples of the training data that calibration reads where no data of its own is given; more change ranges little.
CALIBRATION_SAMPLES = 1024
#: By what a model is judged where no metric is named: by what the labels of its loss are.
METRIC_OF = {"cross_entropy": "accuracy", "bce_with_logits": "binary_accuracy", "mse": "mse", "l1": "mse"}


@dataclass(frozen=True)
class Data:
    """What the stages read; each a path or `package.module:function` (see `onnxqat.data`).

    Attributes:
        train: what is trained on.
        calibration: what ranges come from; the first `CALIBRATION_SAMPLES` of `train` if None.
        validation: what epochs are judged on, so that the best is kept; none are if None.
        test: what the report is made on; `validation`, or else `train`, if None.
        batch_size: rows per batch, for data in files.
    """

    train: str
    calibration: str | None = None
    validation: str | None = None
    test: str | None = None
    batch_size: int = 64

    def read(self, name: str | None) -> datasets.Source:
        """One of the sources above; `train` where it is None."""
        return datasets.read(self.train if name is None else name, self.batch_size)


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
        threads: threads inside an operator; 0: one for each core.
        distributed: whether this is one of several processes (see `onnxqat.distributed`).
        labelling: how labels belong to the first output.
    """

    loss: Loss = "cross_entropy"
    epochs: int = 3
    lr: float = 1e-4
    seed: int = 0
    freeze: tuple[str, ...] = ()
    teacher: str | None = None
    threads: int = 0
    distributed: bool = False
    labelling: Labelling = field(default_factory=Labelling)

    @property
    def metric(self) -> str:
        """What models are judged by where the user names no metric: what the labels of the loss are."""
        names = [self.loss] if isinstance(self.loss, str) else list(self.loss)
        return next((METRIC_OF[name] for name in names if name in METRIC_OF), "accuracy")


@dataclass(frozen=True)
class Judge:
    """Where and by what models are judged: see `verify`."""

    runtime: RuntimeName = "ort"
    interpreter: Path | None = None
    metric: str = "accuracy"
    labelling: Labelling = field(default_factory=Labelling)

    def score(self, model: io.ModelLike, data: datasets.Source) -> float:
        """The metric of a model, as the runtime executes it."""
        return evaluate(
            model,
            data,
            metric=self.metric,
            runtime=self.runtime,
            interpreter=self.interpreter,
            **asdict(self.labelling),
        )


@dataclass(frozen=True)
class Outcome:
    """What a run leaves.

    Attributes:
        float_score: metric of the float model; None without labels.
        inserted_score: metric of what deployment right after insertion gives (post-training quantization).
        trained: the Q/DQ model after training.
        deployed: what it was folded into.
        report: how the two compare in a runtime.
    """

    float_score: float | None
    inserted_score: float | None
    trained: onnx.ModelProto
    deployed: onnx.ModelProto
    report: Report

    def to_json(self) -> str:
        """The numbers as JSON text."""
        scores: dict[str, Any] = {"float": self.float_score, "inserted": self.inserted_score}
        return json.dumps({**scores, **self.report.to_dict()}, indent=2, allow_nan=False)


def run(
    model: io.ModelLike,
    data: Data,
    config: Config,
    training: Training,
    judge: Judge,
    keep: Callable[[onnx.ModelProto], None],
) -> Outcome | None:
    """All stages in order. Of several processes, the first alone keeps and verifies the model; the others return None.

    Args:
        model: the float model.
        data: what each stage reads.
        config: what to quantize and how.
        training: how to train.
        judge: where to verify.
        keep: called with the deployed model as soon as there is one, also when Ctrl-C or an error ends training early.
    """
    calibrated = config if data.calibration is not None else _briefly(config)
    inserted = insert(model, data.read(data.calibration), calibrated, distributed=training.distributed)
    run = trainer(inserted, training)
    validation = None if data.validation is None else data.read(data.validation)
    try:
        run.fit(data.read(data.train), training.epochs, validation)
    finally:
        if run.schedule.position.step and rank() == 0:
            deployed = fold(run.model())
            keep(deployed)
    if rank() > 0:
        return None
    judged = data.read(data.test or data.validation)
    report = verify(
        run.model(),
        deployed,
        judged,
        runtime=judge.runtime,
        interpreter=judge.interpreter,
        metric=judge.metric,
        float_model=model,
        **asdict(judge.labelling),
    )
    labelled = report.deployed is not None
    scores = [judge.score(m, judged) if labelled else None for m in (model, fold(inserted))]
    return Outcome(scores[0], scores[1], run.model(), deployed, report)


def summary(outcome: Outcome) -> Table:
    """One row per state of the model: what each stage did to its accuracy, and what was gained for it."""
    report = outcome.report
    table = Table("model", report.metric, "size", "latency", "layers on integer kernels", title="summary")
    table.title_justify = "left"
    integer, total = report.integer_count()
    size, latency = report.size, report.latency
    floats = (f"{size.float_model / 1e3:.0f} kB", f"{latency.float_model:.2f} ms", "")
    integers = (f"{size.deployed / 1e3:.0f} kB", f"{latency.deployed:.2f} ms", f"{integer} of {total}")
    table.add_row("float", _shown(report.metric, outcome.float_score), *floats)
    table.add_row("inserted, deployed", _shown(report.metric, outcome.inserted_score))
    table.add_row("trained", _shown(report.metric, report.trained))
    table.add_row("trained, deployed", _shown(report.metric, report.deployed), *integers)
    return table


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
        threads=training.threads,
        distributed=training.distributed,
        **asdict(training.labelling),
    )


def _briefly(config: Config) -> Config:
    """The configuration with a limit on the samples that calibration reads, where it has none."""
    ranges = config.activation_range
    if ranges.samples is not None:
        return config
    return Config(**{**dict(config), "activation_range": Range(**{**dict(ranges), "samples": CALIBRATION_SAMPLES})})


def _shown(metric: str, score: float | None) -> str:
    if score is None:
        return ""
    return f"{100 * score:.2f} %" if metric in ("accuracy", "binary_accuracy", "top5") else f"{score:.4g}"
