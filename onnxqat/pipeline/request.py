"""Requests to the stages: data, configuration, training, judgement; each frozen and validated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any, Literal

from onnx import FunctionProto

from onnxqat import nncf
from onnxqat.config import Config
from onnxqat.data import sources as datasets
from onnxqat.data.labels import Labelling
from onnxqat.data.paths import Form
from onnxqat.data.sources import Transform
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.names import OptimizerName, RuntimeName
from onnxqat.pipeline import presets
from onnxqat.training.callbacks.goal import Until, check_until
from onnxqat.training.execution import Execution
from onnxqat.training.optimize.optimizers import SGD, AdamW
from onnxqat.training.optimize.schedules import Length
from onnxqat.training.own import check_numbers
from onnxqat.training.training_graph.losses import Loss
from onnxqat.training.training_graph.named_losses import NAMED_LOSSES
from onnxqat.verification.baseline import Baseline
from onnxqat.verification.host import RUNTIME_OF
from onnxqat.verification.report import Report
from onnxqat.verification.run import baseline, evaluate, verify

#: Learning rate, or that it is to be found.
Rate = float | Literal["auto"]
#: Loss that the labels of the data choose (see `choices`).
AUTO = "auto"
#: Metric by which a model is judged where none is named, by the kind of labels of its loss.
METRIC_OF = {"classes": "accuracy", "sides": "binary_accuracy", "values": "mse"}


@dataclass(frozen=True)
class Data:
    """Data of the stages; each a path or `package.module:function` (see `onnxqat.data`).

    Attributes:
        train: data to train on.
        calibration: data that ranges come from; the first `CALIBRATION_SAMPLES` of `train` if None.
        validation: data that epochs are judged on, so that the best is kept; None: the last epoch is kept.
        test: data that the report is made on; `validation`, or else `train`, if None.
        batch_size: rows per batch, for data in files.
        form: how files become inputs.
    """

    train: str
    calibration: str | None = None
    validation: str | None = None
    test: str | None = None
    batch_size: int = 64
    form: Form = field(default_factory=Form)

    @property
    def judged_on(self) -> str:
        """Name of the data that the report is made on, in words."""
        if self.test not in (None, self.train):
            return "test data"
        if self.test is None and self.validation not in (None, self.train):
            return "validation data (the best epoch was chosen on it)"
        return "training data (give --test for an unbiased figure)"

    def read(self, name: str | None) -> datasets.Source:
        """One of the sources above; `train` where it is None."""
        return datasets.read(self.train if name is None else name, self.batch_size, self.form)


@dataclass(frozen=True)
class Training:
    """Settings of the train stage.

    Attributes:
        loss: see `Trainer`; "auto": the one that the labels of the data fit, `distill` where there are none.
        epochs: passes over the data; 3 where `steps` is not given either.
        steps: optimizer steps after which training ends instead, whatever the epoch.
        judged_by: metric of validation data with labels by which the best epoch is chosen; None: accuracy, or the loss.
        augment: function from a batch to train on to another; None: batches stay as they are.
        until: metric of validation and bound at which training ends, `("accuracy", 0.92)`; see `Trainer.fit`.
        lr: largest learning rate, which falls to 0 along a cosine; "auto": found by a range test; None: see `Trainer`.
        optimizer: which optimizer takes the steps.
        weight_decay: weight decay of the optimizer.
        clip_norm: largest norm of the gradient; None: no limit.
        accumulate: batches whose gradients make one optimizer step.
        seed: seed of the order of the data.
        learn_zero_points: whether zero points of values are trained too; see `Trainer`.
        freeze: names or patterns of initializers or nodes that are not trained.
        teacher: model for the loss `distill`; None: the float model; in `train`, the Q/DQ model without quantizers.
        distributed: whether this is one of several processes (see `onnxqat.distributed`).
        execution: how graphs run.
        labelling: how labels belong to the first output.

    Raises:
        InputError: epochs, steps, rate or another number are out of range, or both epochs and steps are given.
    """

    loss: Loss = AUTO
    epochs: int | None = None
    steps: int | None = None
    judged_by: str | None = None
    augment: Transform | None = None
    until: Until | None = None
    lr: Rate | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    seed: int = 0
    learn_zero_points: bool = False
    freeze: Sequence[str] = ()
    teacher: io.ModelLike | None = None
    distributed: bool = False
    execution: Execution = field(default_factory=Execution)
    labelling: Labelling = field(default_factory=Labelling)

    @property
    def metric(self) -> str:
        """Metric that models are judged by where the user names none; it follows from the labels of the loss."""
        return next((METRIC_OF[kind] for kind in self._labels if kind is not None), "accuracy")

    @property
    def gives_accuracy(self) -> bool:
        """Whether validation gives an accuracy."""
        return any(kind in ("classes", "sides") for kind in self._labels)

    @property
    def distils(self) -> bool:
        """Whether the loss learns from a teacher."""
        return "distill" in self.loss_names

    @property
    def _labels(self) -> list[str | None]:
        """Kinds of labels that the losses take."""
        return [NAMED_LOSSES[name].labels for name in self.loss_names if name in NAMED_LOSSES]

    @property
    def loss_names(self) -> list[Any]:
        """The losses that are given."""
        return [self.loss] if isinstance(self.loss, str) else list(self.loss) if isinstance(self.loss, Iterable) else []

    def __post_init__(self) -> None:
        self.length  # noqa: B018  (it refuses numbers that are none, as the optimizer does)
        self.built_optimizer()
        check_numbers(self.clip_norm, self.accumulate, self.seed)
        if self.until is not None:
            check_until(self.until)

    @property
    def length(self) -> Length:
        """Length of a training."""
        return Length(self.epochs, self.steps)

    def built_optimizer(self, preset: float = 1e-4) -> AdamW | SGD:
        """The optimizer with its rate, a preset where none is given, and weight decay."""
        kind: type[AdamW | SGD] = SGD if self.optimizer == "sgd" else AdamW
        return kind(lr=self.lr if isinstance(self.lr, float | int) else preset, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Judge:
    """Runtime, metric and bound by which models are judged (see `verify`).

    Attributes:
        runtime: "ort", "openvino" or "qnn"; None: that of the configuration's target.
        interpreter: Python of another environment that has the runtime; None: this one.
        metric: name of the metric; None: the one that belongs to the loss.
        labelling: how labels belong to the first output.
        max_drop: how much worse than the float model the deployed one may be; None: the metric's default, which is enforced where
            all is quantized to 8 bits.
    """

    runtime: RuntimeName | None = None
    interpreter: str | Path | None = None
    metric: str | None = None
    labelling: Labelling = field(default_factory=Labelling)
    max_drop: float | None = None

    @property
    def judged_by(self) -> str:
        """Name of the metric."""
        return self.metric or "accuracy"

    def baseline(self, model: io.ModelLike, data: datasets.Source, target: str) -> Baseline:
        """Scores the float model in the runtime that all models are judged in."""
        runtime = RUNTIME_OF[target] if self.runtime is None else self.runtime
        return baseline(
            model,
            data,
            metric=self.judged_by,
            runtime=runtime,
            interpreter=self.interpreter,
            labelling=self.labelling,
        )

    def score(self, model: io.ModelLike, data: datasets.Source) -> float:
        """The metric of a model, as the runtime executes it."""
        return evaluate(
            model,
            data,
            metric=self.judged_by,
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
            metric=self.judged_by,
            float_model=float_model,
            max_drop=self.max_drop,
            **asdict(self.labelling),
        )


def configuration(config: Path | None, fix_input: list[str] | None, preset: str | None = None, **given: Any) -> Config:
    """Merges settings of a preset, of the configuration file and of the command line, each over those before; None: not given."""
    if fix_input:
        given["fixed_inputs"] = fixed_inputs(fix_input)
    base = Config()
    if config is not None:
        base = Config.from_nncf(config) if nncf.describes(config) else Config.read(config)
    of_preset = {} if preset is None else presets.preset(preset).config
    of_file = {name: getattr(base, name) for name in base.model_fields_set}
    return Config(**{**of_preset, **of_file, **{name: value for name, value in given.items() if value is not None}})


def rate(text: str) -> Rate:
    """`--lr` as a number, or `auto`."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise InputError(f"--lr {text}: is neither a number nor auto; fix it") from None


def losses(names: Sequence[str]) -> Loss:
    """Losses by their names, or what `package:function` names: an ONNX function, or a function that returns one.

    Raises:
        InputError: there is none, or others are given with it.
    """
    named = [name for name in names if ":" in name]
    if not named:
        return list(names)
    if len(names) > 1:
        raise InputError(
            f"--loss {named[0]}: is a function, and other losses are given with it; add them up in the function"
        )
    found = datasets.resolve(named[0])
    if inspect.isfunction(found) and _needs_arguments(found):
        raise InputError(
            f"--loss {named[0]}: is a Python function of outputs and labels; write it as an ONNX function (onnxscript's @script)"
        )
    return found if isinstance(found, FunctionProto) or hasattr(found, "to_function_proto") else datasets.call(named[0])


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    return False


def bound(text: str) -> Until:
    """`METRIC=NUMBER` as a bound of training."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise InputError(f"--until {text}: is not METRIC=NUMBER, such as accuracy=0.92; fix it") from None


def fixed_inputs(texts: Sequence[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` of the command line as `Config.fixed_inputs`."""
    return dict(map(_fixed_input, texts or ()))


def _fixed_input(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` as a pair."""
    name, _, value = text.rpartition("=")
    try:
        return name, loads(value.lower())
    except JSONDecodeError:
        raise InputError(
            f"--fix-input {text}: is not NAME=VALUE with a number, true, false or a list; fix it"
        ) from None
