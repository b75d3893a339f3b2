"""The way of a model through the stages, in reading order: insert → train → fold → verify.

What can be refused is refused first, and the float model is scored first: all that follows is worth as much as that score.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from onnxqat.config import Config
from onnxqat.config_parts import Range
from onnxqat.data import sources as datasets
from onnxqat.data.labels import Labelling
from onnxqat.errors import DropError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.fixed import with_fixed_inputs
from onnxqat.insertion.prepare import prepare
from onnxqat.launch import rank
from onnxqat.names import RuntimeName
from onnxqat.recovery import Recovery, fit
from onnxqat.training import preflight
from onnxqat.training.callbacks import Callback
from onnxqat.training.fit import check_epochs
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph.losses import Loss
from onnxqat.training.training_graph.named_losses import NAMED_LOSSES
from onnxqat.verification.baseline import Baseline
from onnxqat.verification.host import RUNTIME_OF
from onnxqat.verification.judge import check_judged, shown
from onnxqat.verification.metrics import named
from onnxqat.verification.report import Report
from onnxqat.verification.run import baseline, check_max_drop, evaluate, verify

log = logging.getLogger(__name__)

#: Steps of linear growth from 0: AdamW's first steps at full rate throw the weights of low-bit layers about.
WARMUP_STEPS = 20
#: Samples of the training data that calibration reads where no data of its own is given; more change ranges little.
CALIBRATION_SAMPLES = 1024
#: By what a model is judged where no metric is named: by what the labels of its loss are.
METRIC_OF = {"classes": "accuracy", "sides": "binary_accuracy", "values": "mse"}


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

    @property
    def judged_on(self) -> str:
        """What the report is made on, in words."""
        if self.test not in (None, self.train):
            return "test data"
        if self.test is None and self.validation not in (None, self.train):
            return "validation data (the best epoch was chosen on it)"
        return "training data (give --test for an honest figure)"

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

    Raises:
        InputError: epochs or rate are out of range.
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
        labels = (NAMED_LOSSES[name].labels for name in names if name in NAMED_LOSSES)
        return next((METRIC_OF[kind] for kind in labels if kind is not None), "accuracy")

    def __post_init__(self) -> None:
        check_epochs(self.epochs)
        self.optimizer  # noqa: B018  (it refuses a rate that is none)

    @property
    def optimizer(self) -> AdamW:
        """The optimizer."""
        return AdamW(lr=self.lr)


@dataclass(frozen=True)
class Judge:
    """Where and by what models are judged: see `verify`.

    Attributes:
        runtime: None: the one that the configuration's target names.
        interpreter: Python of another environment that has it.
        metric: what is compared.
        labelling: how labels belong to the first output.
        max_drop: how much worse than the float model the deployed one may be; None: the metric's default, which is enforced where
            all is quantized to 8 bits.
    """

    runtime: RuntimeName | None = None
    interpreter: str | Path | None = None
    metric: str = "accuracy"
    labelling: Labelling = field(default_factory=Labelling)
    max_drop: float | None = None

    def baseline(self, model: io.ModelLike, data: datasets.Source, target: str) -> Baseline:
        """How the float model does, in the runtime that will be judged in."""
        runtime = RUNTIME_OF[target] if self.runtime is None else self.runtime
        return baseline(
            model,
            data,
            metric=self.metric,
            runtime=runtime,
            interpreter=self.interpreter,
            labelling=self.labelling,
        )

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

    def compare(
        self, models: tuple[io.ModelLike, io.ModelLike], float_model: io.ModelLike | None, data: datasets.Source
    ) -> Report:
        """The report on a trained and a deployed model."""
        return verify(
            *models,
            data,
            runtime=self.runtime,
            interpreter=self.interpreter,
            metric=self.metric,
            float_model=float_model,
            max_drop=self.max_drop,
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
        report: how the two compare in a runtime, and with the float model.
        judged_on: what data all these are of.
    """

    float_score: float | None
    inserted_score: float | None
    trained: onnx.ModelProto
    deployed: onnx.ModelProto
    report: Report
    judged_on: str

    def to_json(self) -> str:
        """The numbers as JSON text."""
        scores: dict[str, Any] = {
            "float": self.float_score,
            "inserted": self.inserted_score,
            "judged_on": self.judged_on,
        }
        return json.dumps({**scores, **self.report.to_dict()}, indent=2, allow_nan=False)


def run(  # noqa: PLR0913  (all of it is one call)
    model: io.ModelLike,
    data: Data,
    config: Config,
    training: Training,
    judge: Judge,
    keep: Callable[[onnx.ModelProto], None],
    *,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    recovery: Recovery | None = None,
) -> Outcome | None:
    """All stages in order. Of several processes, the first alone keeps and verifies the model; the others return None.

    Args:
        model: the float model.
        data: what each stage reads.
        config: what to quantize and how.
        training: how to train.
        judge: where to verify.
        keep: called with the deployed model as soon as there is one, also when a signal or an error ends training early.
        callbacks: see `Trainer.fit`.
        resume: folder of checkpoints to go on from.
        recovery: how a run that a signal ends can go on; None: not at all.
    """
    model = with_fixed_inputs(model, config.fixed_inputs)
    config = config.model_copy(update={"fixed_inputs": {}})
    check_request(model, data, training, judge)
    judged = data.read(data.test or data.validation)
    before = scored_first(model, judged, config, judge) if rank() == 0 else None
    calibrated = config if data.calibration is not None else _briefly(config)
    inserted = insert(
        model,
        data.read(data.calibration),
        calibrated,
        sample_axis=training.labelling.sample_axis,
        distributed=training.distributed,
    )
    run = trainer(inserted, training)
    if resume is not None:
        run.resume(resume)
    validation = None if data.validation is None else data.read(data.validation)
    deployed = None

    def keep_deployed(trained: onnx.ModelProto) -> None:
        nonlocal deployed
        deployed = fold(trained)
        keep(deployed)

    fit(run, training.epochs, data.read(data.train), validation, callbacks, keep_deployed, recovery)
    if before is None or deployed is None:
        return None
    report = judge.compare((run.model(), deployed), model, judged)
    inserted_score = judge.score(fold(inserted), judged) if report.deployed is not None else None
    report = _judged(report, inserted_score, enforced=judge.max_drop is not None or _all_of_8_bits(config))
    return Outcome(before.score, inserted_score, run.model(), deployed, report, data.judged_on)


def check_request(model: io.ModelLike, data: Data, training: Training, judge: Judge) -> None:
    """Refuses what can be refused before any work: metric, bound, loss, teacher, and the first batch of what is trained on.

    Raises:
        InputError: one of them does not fit the model.
    """
    named(judge.metric)
    check_max_drop(judge.max_drop, model)
    sources = [data.read(name) for name in dict.fromkeys((data.train, data.validation)) if name is not None]
    preflight.check(prepare(model), training.loss, training.teacher, training.labelling, *sources)


def scored_first(model: io.ModelLike, judged: datasets.Source, config: Config, judge: Judge) -> Baseline:
    """Scores the float model, and says so where it does not belong to the data."""
    found = judge.baseline(model, judged, config.target)
    if found.score is not None:
        log.info("float model: %s %s", judge.metric, shown(judge.metric, found.score))
    check_judged(judge.max_drop, possible=found.can_judge)
    if not found.can_judge:
        log.warning(
            "warning: there are neither labels nor class scores, so the deployed model is not judged against float"
        )
    if found.suspicion is not None:
        log.warning("warning: %s", found.suspicion)
    return found


def conclude(report: Report) -> None:
    """Says so where the deployed model is worse than allowed.

    Raises:
        DropError: that is a failure.
    """
    verdict = report.verdict
    if verdict is None or not verdict.exceeded:
        return
    if verdict.fails:
        raise DropError(verdict.sentence)
    log.warning("warning: %s", verdict.sentence)


def _judged(report: Report, inserted_score: float | None, *, enforced: bool) -> Report:
    """The report whose verdict knows what insertion alone gave."""
    if report.verdict is None:
        return report
    evidence = replace(report.verdict.evidence, inserted_score=inserted_score)
    return replace(report, verdict=replace(report.verdict, enforced=enforced, evidence=evidence))


def _all_of_8_bits(config: Config) -> bool:
    """Whether nothing is quantized to fewer bits, which may cost more."""
    rules = [bits for rule in config.overrides for bits in (rule.weight_bits, rule.activation_bits) if bits is not None]
    return min([config.weight_bits, config.activation_bits, *rules]) == 8


def summary(outcome: Outcome) -> Table:
    """One row per state of the model: what each stage did to its accuracy, and what was gained for it."""
    report = outcome.report
    table = Table(
        "model",
        report.metric,
        "size",
        "latency",
        "layers on integer kernels",
        title=f"summary, judged on {outcome.judged_on}",
    )
    table.title_justify = "left"
    integer, total = report.integer_count()
    size, latency = report.size, report.latency
    floats = (f"{size.float_model / 1e3:.0f} kB", f"{latency.float_model:.2f} ms", "")
    integers = (f"{size.deployed / 1e3:.0f} kB", f"{latency.deployed:.2f} ms", f"{integer} of {total}")
    table.add_row("float", shown(report.metric, outcome.float_score), *floats)
    table.add_row("inserted, deployed", shown(report.metric, outcome.inserted_score))
    table.add_row("trained", shown(report.metric, report.trained))
    table.add_row("trained, deployed", shown(report.metric, report.deployed), *integers)
    return table


def trainer(qdq: io.ModelLike, training: Training) -> Trainer:
    """A trainer with the settings of the command line."""
    return Trainer(
        qdq,
        loss=training.loss,
        optimizer=training.optimizer,
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
