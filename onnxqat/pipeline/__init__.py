"""The way of a model through the stages, in reading order: insert → train → fold → verify.

What can be refused is refused first, and the float model is scored first: all that follows is worth as much as that score.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir
from rich.table import Table

from onnxqat.config import Config
from onnxqat.config_parts import Range, Tolerance
from onnxqat.data import sources
from onnxqat.errors import DropError, InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.preparation import prepare
from onnxqat.insertion.preparation.fixed import with_fixed_inputs
from onnxqat.metrics.table import named
from onnxqat.pipeline.choices import judged_by, settled
from onnxqat.pipeline.notes import noted, origin, scores
from onnxqat.pipeline.rates import found_rate
from onnxqat.pipeline.recovery import Keeping, fit
from onnxqat.pipeline.request import Data, Judge, Training
from onnxqat.process.launch import rank
from onnxqat.search.raising import Step
from onnxqat.search.reconstruction.reconstruct import reconstruct
from onnxqat.terminal.quiet import quiet
from onnxqat.training.health import preflight
from onnxqat.training.optimize.presets import rate_of
from onnxqat.training.optimize.schedules import Constant, Cosine, Rate
from onnxqat.training.trainer import Trainer
from onnxqat.verification.baseline import Baseline
from onnxqat.verification.judge import check_judged
from onnxqat.verification.measures import shown
from onnxqat.verification.report import Report
from onnxqat.verification.run import check_max_drop, decisions_of

log = logging.getLogger(__name__)

#: Steps of linear growth from 0: at full rate, AdamW's first steps move the weights of low-bit layers too far.
WARMUP_STEPS = 20
#: Samples of the training data that calibration reads where no data of its own is given; more change ranges little.
CALIBRATION_SAMPLES = 1024
#: Share of float's time from which on the deployed model is said to be slower: less is noise.
SLOWER = 1.02


@dataclass(frozen=True)
class Outcome:
    """Results of a run.

    Attributes:
        float_score: metric of the float model; None without labels.
        inserted_score: metric of the model deployed right after insertion (post-training quantization).
        trained: the Q/DQ model after training; where none was needed, the one before it.
        deployed: the deployed model that it was folded into.
        report: how the two compare in a runtime, and with the float model.
        inserted: the Q/DQ model before training.
        float_model: the float model, with the inputs that the configuration fixes.
        config: the settings that the model was inserted by.
        judged_on: name of the data that all this was judged on.
        path: the steps by which precision was raised (see `run_raising`); empty where that was not asked for.
    """

    float_score: float | None
    inserted_score: float | None
    trained: onnx.ModelProto
    deployed: onnx.ModelProto
    report: Report
    inserted: onnx.ModelProto
    float_model: io.ModelLike
    config: Config
    judged_on: str
    path: tuple[Step, ...] = ()

    @property
    def was_trained(self) -> bool:
        """Whether the model was trained, rather than deployed as it was inserted."""
        return self.trained is not self.inserted

    def to_json(self) -> str:
        """The numbers as JSON text."""
        scores: dict[str, Any] = {
            "float": self.float_score,
            "inserted": self.inserted_score,
            "judged_on": self.judged_on,
        }
        if self.path:
            scores["path"] = [asdict(step) for step in self.path]
        found = {**scores, **self.report.to_dict()}
        return json.dumps(found if self.was_trained else found | {"trained": None}, indent=2, allow_nan=False)


def run(
    model: io.ModelLike,
    data: Data,
    config: Config,
    training: Training,
    judge: Judge,
    keeping: Keeping,
    *,
    reconstructed: bool = False,
) -> Outcome | None:
    """Runs all stages in order. Of several processes, only the first keeps and verifies the model; others return None.

    Args:
        model: the float model.
        data: data of each stage.
        config: settings of quantization.
        training: settings of training.
        judge: runtime, metric and bound of verification.
        keeping: how the deployed model is kept, and a run that is interrupted.
        reconstructed: whether blocks are reconstructed before training (see `onnxqat.reconstruct`).
    """
    model, config, training, judge = ready(model, data, config, training, judge)
    judged = data.read(data.test or data.validation)
    before = scored_first(model, judged, config, judge) if rank() == 0 else None
    config = calibrating(config, data)
    inserted = insert(
        model,
        data.read(data.calibration),
        config,
        sample_axis=training.labelling.sample_axis,
        distributed=training.distributed,
    )
    if reconstructed:
        calibration = data.read(data.calibration)
        inserted = reconstruct(inserted, model, calibration, seed=training.seed, **asdict(training.execution))
    deployed, notes = None, origin(model, config, data)

    def keep_deployed(trained: ir.Model) -> None:
        nonlocal deployed
        deployed = noted(fold(trained), notes)
        keeping.write(deployed)

    if config.tolerance is not None and training.until is None:
        training = _within(config.tolerance, training, model, data.read(data.validation), judge, config.target)
    run = train(inserted, data, training, replace(keeping, write=keep_deployed))
    if before is None or deployed is None:
        return None
    return _concluded(before.score, (model, inserted, run.model(), deployed), config, data, judge, keeping)


def untrained(
    model: io.ModelLike, inserted: onnx.ModelProto, data: Data, config: Config, judge: Judge, keeping: Keeping
) -> Outcome:
    """Folds, keeps and verifies a model that needs no training; the arguments are those of `run`, made ready."""
    deployed = noted(fold(inserted), origin(model, config, data))
    keeping.write(io.load(deployed))
    before = judge.baseline(model, data.read(data.test or data.validation), config.target).score
    return _concluded(before, (model, inserted, inserted, deployed), config, data, judge, keeping)


def ready(
    model: io.ModelLike, data: Data, config: Config, training: Training, judge: Judge
) -> tuple[io.ModelLike, Config, Training, Judge]:
    """The request with all that the model and the data decide, checked.

    Raises:
        InputError: it cannot be fulfilled.
    """
    model = with_fixed_inputs(model, config.fixed_inputs)
    config = config.model_copy(update={"fixed_inputs": {}})
    training, metric = settled(prepare(model), data, training)
    judge = replace(judge, metric=judge.metric or metric)
    if training.distils and training.teacher is None:
        training = replace(training, teacher=model)
    check_request(model, data, training, judge)
    check_goal(config, data, training)
    return model, config, training, judge


def _concluded(
    before: float | None,
    models: tuple[io.ModelLike, onnx.ModelProto, onnx.ModelProto, onnx.ModelProto],
    config: Config,
    data: Data,
    judge: Judge,
    keeping: Keeping,
) -> Outcome:
    """Verifies the float, the inserted, the trained and the deployed model, and notes the scores in the last one."""
    model, inserted, trained, deployed = models
    judged = data.read(data.test or data.validation)
    report = judge.compare((trained, deployed), model, judged)
    with quiet("onnxqat.folding"):
        inserted_score = judge.score(fold(inserted), judged) if report.deployed is not None else None
    report = _judged(report, inserted_score, enforced=judge.max_drop is not None or not config.has_few_bits)
    known = {"float": before, "inserted": inserted_score, "deployed": report.deployed}
    known |= {} if trained is inserted else {"trained": report.trained}
    keeping.note(noted(deployed, scores(report.metric, data.judged_on, **known)))
    report = replace(report, size=replace(report.size, deployed=deployed.ByteSize()))  # with its notes
    return Outcome(before, inserted_score, trained, deployed, report, inserted, model, config, data.judged_on)


def train(qdq: io.ModelLike, data: Data, training: Training, keeping: Keeping) -> Trainer:
    """Runs only the train stage (see `run`); the trainer that is returned holds the result."""
    training, _ = settled(io.load(qdq), data, training)
    if training.lr == "auto":
        training = replace(training, lr=_found(qdq, data, training))
    made = trainer(qdq, training)
    if keeping.resume is not None:
        made.resume(keeping.resume, strict=keeping.strict)
    validation = None if data.validation is None else data.read(data.validation)
    metric = judged_by(io.load(qdq), data, training)
    fit(made, training.length, data.read(data.train), validation, keeping, training.until, metric, training.augment)
    return made


def check_request(model: io.ModelLike, data: Data, training: Training, judge: Judge) -> None:
    """Refuses what can be refused before any work: metric, bound, loss, teacher, and the first batch of what is trained on.

    Raises:
        InputError: one of them does not fit the model.
    """
    prepared = prepare(model)
    named(judge.judged_by, decisions_of(prepared, training.labelling))
    check_max_drop(judge.max_drop, model)
    sources = [data.read(name) for name in dict.fromkeys((data.train, data.validation)) if name is not None]
    preflight.check(prepared, training.loss, training.teacher, training.labelling, *sources)


def check_goal(config: Config, data: Data, training: Training) -> None:
    """Refuses a bound of training that cannot be judged.

    Raises:
        InputError: there is no validation data, or the loss gives no accuracy.
    """
    if training.until is not None and data.validation is None:
        raise InputError("until: is judged on validation data, and none is given; add --validation DATA")
    if config.tolerance is None or training.until is not None:
        return
    if data.validation is None:
        raise InputError(
            "tolerance of accuracy: is judged on validation data, and none is given; add --validation DATA"
        )
    if not training.gives_accuracy:
        raise InputError("tolerance of accuracy: the loss gives no accuracy; end training with --until loss=… instead")


def _within(
    tolerance: Tolerance, training: Training, model: io.ModelLike, data: sources.Source, judge: Judge, target: str
) -> Training:
    """The settings with the bound and the epochs of a tolerance, which the float model's score makes a number."""
    score = replace(judge, metric=training.metric).baseline(model, data, target).score
    assert score is not None  # there are labels, as training has read them
    bound = tolerance.bound(score)
    log.info("training ends at a validation accuracy of %.4f; the float model's is %.4f", bound, score)
    epochs = training.epochs if training.steps is not None else training.epochs or tolerance.epochs
    return replace(training, until=("accuracy", bound), epochs=epochs)


def scored_first(model: io.ModelLike, judged: sources.Source, config: Config, judge: Judge) -> Baseline:
    """Scores the float model, and warns if it does not seem to belong to the data."""
    found = judge.baseline(model, judged, config.target)
    if found.score is not None:
        log.info("float model: %s %s", judge.judged_by, shown(judge.judged_by, found.score))
    check_judged(judge.max_drop, possible=found.can_judge)
    if not found.can_judge:
        log.warning(
            "warning: there are neither labels nor class scores, so the deployed model is not judged against float"
        )
    if found.suspicion is not None:
        log.warning("warning: %s", found.suspicion)
    return found


def conclude(report: Report) -> None:
    """Warns if the deployed model is worse than allowed.

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
    """The report, with the score right after insertion in its verdict."""
    if report.verdict is None:
        return report
    evidence = replace(report.verdict.evidence, inserted_score=inserted_score)
    return replace(report, verdict=replace(report.verdict, enforced=enforced, evidence=evidence))


def summary(outcome: Outcome, most: float | None = None) -> Table:
    """One row per state of the model: what each stage did to its accuracy, and what was gained for it.

    Args:
        outcome: what the stages made.
        most: share of float's time that was asked for; None: none was.
    """
    report = outcome.report
    metric, before, after = report.metric, outcome.float_score, report.deployed
    if after is None and report.verdict is not None:  # without labels: the answers that are the float model's
        metric, before, after = report.verdict.metric, report.verdict.float_score, report.verdict.deployed_score
    table = Table(
        "model",
        metric,
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
    table.add_row("float", shown(metric, before), *floats)
    state = "trained" if outcome.was_trained else "inserted"
    if outcome.was_trained:
        table.add_row("inserted, deployed", shown(report.metric, outcome.inserted_score))
    table.add_row(state, shown(report.metric, report.trained))
    table.add_row(f"{state}, deployed", shown(metric, after), *integers)
    table.caption, table.caption_justify = _slower(latency.ratio, most), "left"
    return table


def _slower(ratio: float, most: float | None) -> str | None:
    """Advice where the deployed model takes more time than was asked for, or than float; None elsewhere."""
    takes = f"The deployed model takes {ratio:.3g} of float's time here"
    if most is not None and ratio > most:
        return (
            f"{takes}, more than the {most:g} asked for: times vary between measurements; a lower budget leaves room."
        )
    return f"{takes}; --for latency chooses layers to leave in float." if ratio > SLOWER else None


def _found(qdq: io.ModelLike, data: Data, training: Training) -> float:
    """The learning rate of a range test, on a trainer of its own."""
    probe = trainer(qdq, replace(training, accumulate=1), Constant())
    batches = sources.batches(data.read(data.train), io.load(qdq), sample_axis=training.labelling.sample_axis)
    return found_rate(probe, batches, training.seed)


def trainer(qdq: io.ModelLike, training: Training, schedule: Rate | None = None) -> Trainer:
    """A trainer with the settings of the command line, whose rate falls along a cosine unless there is another schedule."""
    return Trainer(
        qdq,
        loss=training.loss,
        optimizer=training.built_optimizer(rate_of(io.load(qdq))),
        schedule=Cosine(warmup_steps=WARMUP_STEPS) if schedule is None else schedule,
        seed=training.seed,
        learn_zero_points=training.learn_zero_points,
        freeze=training.freeze,
        clip_norm=training.clip_norm,
        accumulate=training.accumulate,
        teacher=training.teacher,
        distributed=training.distributed,
        **asdict(training.labelling),
        **asdict(training.execution),
    )


def calibrating(config: Config, data: Data) -> Config:
    """The configuration with a limit on the samples that calibration reads of the training data, where it has none."""
    ranges = config.activation_range
    if data.calibration is not None or ranges.samples is not None:
        return config
    return Config(**{**dict(config), "activation_range": Range(**{**dict(ranges), "samples": CALIBRATION_SAMPLES})})
