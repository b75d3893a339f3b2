"""Training: a loop over batches, or single steps in a loop of your own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.data.batch import Batch, check_batch
from onnxqat.data.labels import Labelling
from onnxqat.distributed import Workers
from onnxqat.graph import io
from onnxqat.metrics.table import Function, Metric, named
from onnxqat.runtime import check_packages, checked
from onnxqat.training.callbacks.calling import Callers
from onnxqat.training.callbacks.goal import Until, goal
from onnxqat.training.callbacks.ready_made import BestModel, Callback, Progress, checked_callbacks
from onnxqat.training.execution import Execution, Options
from onnxqat.training.loop import evaluation
from onnxqat.training.loop.assembly import Arguments, assembled
from onnxqat.training.loop.fit import Fit
from onnxqat.training.optimize.optimizers import Optimizer
from onnxqat.training.optimize.schedules import Constant, Length, Rate, Schedule
from onnxqat.training.resume import checkpoint, checkpoint_files
from onnxqat.training.resume.identity import arguments_of
from onnxqat.training.resume.record import Record
from onnxqat.training.resume.state import State
from onnxqat.training.statistics import Statistics, statistics
from onnxqat.training.training_graph.build import with_values
from onnxqat.training.training_graph.losses import Loss

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

Data: TypeAlias = "sources.Batches | sources.Source | str | Any"


class Trainer:
    """Fine-tunes a Q/DQ model: weights, biases and all scales.

    Where `insert` left start epochs in the model (`Config.activation_start_epoch`, `weight_start_epoch`), steps before them run
    with activations or weights in float; what is evaluated, validated and returned is the fully quantized model all the same.

    Args:
        qdq: the model, as `onnxqat.insert` or another quantizer wrote it.
        loss: a name, names to sum, weights by name, or an ONNX function from (outputs, labels) to a scalar; see `losses`.
        optimizer: `SGD` or `AdamW`. A quantized model begins near its best, so rates at which networks are trained from scratch
            ruin it. None: AdamW at 1e-5 where weights have 8 or 7 bits, 3e-4 at 6 and 5, 1e-3 at 4 and fewer, and
            1e-4 at fewer than 7 bits after `reconstruct`. If the loss rises above its first value, a warning says so.
        schedule: `Constant`, `Cosine` or `StepDecay`.
        freeze: names or regular expressions of initializers or nodes that are not trained. If trained 8-bit weights outgrow a
            frozen scale, it is raised in the model that is returned (`Config.overflow_fix`).
        teacher: model for the loss `distill`; None: the Q/DQ model without its quantizers, as it stands now; not
            where `insert` corrected outputs (below 8 bits by default) or `reconstruct` ran: give the float model.
        clip_norm: largest norm of the gradient; None: no limit.
        accumulate: number of batches whose gradients make one optimizer step, as one large batch would. Each batch weighs as much
            as it has labels that count, or else samples. In `fit`, batches left at the end of an epoch make a step of their own.
        class_axis: axis of the first output that holds the classes; None: the model's Softmax or the labels' shape tells it.
        ignore_label: label that is ignored, such as -100 or 255; None: all count.
        sample_axis: axis of the first input that counts samples; None: it follows from the model, and is usually the first.
        seed: seed of the order of the data.
        learn_zero_points: whether zero points of values are trained as well (LSQ+), but those at the lowest code, as behind Relu,
            and 0 of signed codes. Pays where values of few bits lie around zero unevenly, as in Transformers.
        distributed: whether this is one of several processes that torchrun started; each is given the same batches and takes
            its rows of them (see `onnxqat.distributed`).
        execution: `threads`, `layout`, `engine`, `memory`, `provider`: see `onnxqat.Execution`.

    Attributes:
        optimizer: the optimizer.
        state: parameters, moments, position in the schedule, and all else that a checkpoint holds.
        metric: metric by which the running `fit` judges epochs; None: accuracy or loss.
        resumed_from: checkpoint that this trainer was resumed from; None: it was not resumed.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=2e-4), schedule=onnxqat.Cosine())
        trainer.fit(train_batches, epochs=3, validation=validation_batches)
        deployed = onnxqat.fold(trainer.model())
        ```

    Raises:
        InputError: the model has no quantizers, an argument does not fit it, or the engine is not installed.
        UnsupportedModelError: nodes between parameters and loss have no gradient; the message names all of them.
    """

    def __init__(  # noqa: PLR0913  (the public interface is this flat)
        self,
        qdq: io.ModelLike,
        loss: Loss = "cross_entropy",
        optimizer: Optimizer | None = None,
        *,
        schedule: Rate | None = None,
        freeze: Sequence[str] = (),
        teacher: io.ModelLike | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        class_axis: int | None = None,
        ignore_label: int | None = None,
        sample_axis: int | None = None,
        seed: int = 0,
        learn_zero_points: bool = False,
        distributed: bool = False,
        **execution: Unpack[Options],
    ) -> None:
        check_packages()
        how = Execution(**execution)
        self._workers = Workers.join() if distributed else Workers()
        arguments = Arguments(
            loss,
            optimizer,
            schedule if schedule is not None else Constant(),
            freeze,
            teacher,
            clip_norm,
            accumulate,
            Labelling(class_axis, ignore_label, sample_axis),
            seed,
            learn_zero_points,
        )
        how = replace(how, threads=self._workers.threads(how.threads))
        self._steps = assembled(qdq, arguments, self._workers, how)
        self._record = Record(self._steps, arguments.named(), how)
        self._callers: Callers | None = None
        self.metric: Metric | None = None

    def fit(  # noqa: PLR0913  (the public interface is this flat)
        self,
        batches: Data,
        epochs: int | None = None,
        validation: Data | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        steps: int | None = None,
        until: Until | None = None,
        metric: str | Function | None = None,
        transform: sources.Transform | None = None,
        augment: sources.Transform | None = None,
    ) -> None:
        """Trains for a number of epochs or steps; with validation data the best epoch's parameters are kept.

        Ctrl-C, or another signal that raises, leaves the trainer as it was after the last whole step. An interrupted run, or
        one resumed from a checkpoint, continues where it was: `epochs` and `steps` count from where it had begun.

        Args:
            batches: an iterable of batches, a loader, a function that returns one, or a path; see `onnxqat.data`.
            epochs: passes over the data; 3 where `steps` is not given either.
            validation: data on which each epoch is judged: by `metric`, or else by accuracy for `cross_entropy` and
                `bce_with_logits`, by the loss otherwise.
            callbacks: called after steps and epochs, besides the progress display and the keeping of the best model.
            steps: optimizer steps after which the run ends instead, whatever the epoch; the last epoch may then be part of one.
            until: bound at which the run ends as soon as validation reaches it, before its first step if it does so by then:
                `("accuracy", 0.92)`, at least, or `("loss", 0.3)`, at most.
            metric: name of a metric or function, as of `onnxqat.evaluate`, by which the best epoch is chosen; its validation data
                needs labels.
            transform: turns an item of either loader into a batch.
            augment: turns a batch to train on into another, as by random flips; what it draws from NumPy's and Python's global
                generators is the same again in a run that resumes.

        Raises:
            InputError: a batch does not fit the model, a callback is another library's, both `epochs` and `steps` are given,
                or `until` without validation data.
            TrainingError: the loss or a gradient is not finite; the parameters are those of the last good step.
        """
        callbacks = checked_callbacks(callbacks)
        length = Length(epochs, steps)
        source = replace(self._batches(batches, transform), augment=augment)
        judged = None if validation is None else self._batches(validation, transform)
        self.metric = None if metric is None else named(metric, self._steps.feeds.loss.decisions)
        run = Fit(self._steps, source, judged, self._record.remembered, self.metric)
        run.begin(length)
        kept: list[Callback] = [BestModel()] if judged is not None else []
        if until is not None:
            kept.append(goal(until, self._steps, judged, self.metric))
        self._callers = Callers(self, [Progress(), *kept, *callbacks], self._workers)
        run.run(self._callers)
        self._record.remembered = None

    def step(self, batch: Any) -> float:
        """One step on a batch: forward, backward, update; returns the loss before it. It advances `schedule` by a step.

        With `accumulate`, parameters change only every `accumulate` calls, in whatever epoch.
        """
        checked = check_batch(batch, self._steps.feeds.signature())
        with self._steps.whole():
            return self._steps.step(checked)

    def gradients(self, batch: Any) -> tuple[float, dict[str, NDArray[np.float32]]]:
        """Loss and gradients of a batch by initializer name; nothing is updated.

        Gradients of scales are with respect to the scale as it stands in the model.
        """
        self._steps.hold()
        loss = self._steps.differentiate(check_batch(batch, self._steps.feeds.signature()))
        gradients = self._steps.graph.layout.named(self._steps.engine.gradients)
        return loss, {name: view.copy() for name, view in gradients.items()}

    def take_best(self) -> bool:
        """Restores the parameters of the best epoch of an interrupted run; returns whether an epoch has been judged.

        The run cannot resume from there: save a checkpoint first.
        """
        best, self.state.best = self.state.best, None
        if best is not None:
            self.state.parameters[:] = best[0]
        return best is not None

    def evaluate(
        self,
        batches: Data,
        *,
        metric: str | Function | Metric | None = None,
        transform: sources.Transform | None = None,
    ) -> dict[str, float]:
        """Mean loss over the data, accuracy (0 to 1) for `cross_entropy` and `bce_with_logits`, and a metric that is named.

        Args:
            batches: data with labels.
            metric: name of a metric, or a function, as of `onnxqat.evaluate`.
            transform: turns an item of the loader into a batch.
        """
        judge = None if metric is None else named(metric, self._steps.feeds.loss.decisions)
        return evaluation.evaluate(self._steps, self._batches(batches, transform), judge)

    def statistics(self, batches: Data | None = None, *, transform: sources.Transform | None = None) -> Statistics:
        """Returns settings and scales of quantizers, shares of clipped values and drift; prints as tables.

        Args:
            batches: data, labels not needed, to count clipped activations on; None: the last batch trained on, if any.
            transform: turns an item of the loader into a batch.
        """
        seen: Iterable[Batch] = [] if self._steps.last is None else [self._steps.last]
        if batches is not None:
            unlabelled = self._steps.feeds.signature(needs_labels=False)
            seen = replace(self._batches(batches, transform), signature=unlabelled)
        return statistics(self._steps.graph.qdq, self._trained(), seen, self.schedule.position.step)

    def model(self) -> onnx.ModelProto:
        """The Q/DQ model with the parameters as they are now, fully quantized at whatever stage."""
        return checked(io.to_proto(self._noted()))

    def view(self) -> ir.Model:
        """The model as `model()` returns it, without a copy of its weights: they change with the next step."""
        return checked(self._noted())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint: all that this run must remember, in a file that appears whole or not at all.

        Of several processes, only the first writes.

        Raises:
            InputError: the path cannot be written.
        """
        self._record.write(Path(path), [] if self._callers is None else self._callers.states())

    @classmethod
    def restore(cls, path: str | os.PathLike[str], *, strict: bool = False, **given: Any) -> Trainer:
        """Returns the trainer of a checkpoint, ready to resume as if it had never stopped.

        Args:
            path: file that `save` wrote, or a folder of `Checkpoints`, of which the newest whole one counts.
            strict: as of `resume`.
            given: arguments of `Trainer` that a file cannot hold: a teacher, and an optimizer or a schedule of your own class;
                or other options of execution than the checkpoint has.

        Raises:
            InputError: there is no whole checkpoint, another version wrote it, or an argument must be given.
        """
        workers = Workers.join() if given.get("distributed") else Workers()
        tensors, facts = workers.from_first(lambda: checkpoint.load(path))
        with checkpoint_files.understood(facts["path"]):
            arguments = arguments_of(tensors, facts, given)
        trainer = cls(**arguments)
        trainer._record.take(tensors, facts, strict=strict)
        return trainer

    def resume(self, path: str | os.PathLike[str], *, strict: bool = False) -> None:
        """Resumes from a checkpoint of the same model and arguments; `restore` makes a trainer from a checkpoint alone.

        Args:
            path: file that `save` wrote, or a folder of `Checkpoints`, of which the newest whole one counts.
            strict: whether to refuse a checkpoint of another engine, layout, provider, or number of threads or processes, instead
                of a warning: from there on, results differ by rounding from those of a run that never stopped.

        Raises:
            InputError: there is no whole checkpoint, or it is of another run; the message says in what it differs.
        """
        self._record.take(*self._workers.from_first(lambda: checkpoint.load(path)), strict=strict)

    @property
    def state(self) -> State:
        """State that a run must remember, apart from what it was made with."""
        return self._steps.state

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer; one of its kind with another rate may be set between steps."""
        return self._steps.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._steps.optimizer = optimizer

    @property
    def schedule(self) -> Schedule:
        """The learning-rate schedule, for a loop of your own; `fit` and `step` advance it."""
        return self.state.schedule

    @property
    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Trained arrays by initializer name; the next step reads them, so changing them in place takes effect."""
        return self._steps.graph.layout.named(self.state.parameters)

    @property
    def stop(self) -> bool:
        """Whether the running `fit` is to end after this step; callbacks set it."""
        return self.state.stop

    @stop.setter
    def stop(self, stop: bool) -> None:
        self.state.stop = stop

    @property
    def resumed_from(self) -> Path | None:
        """Checkpoint that this trainer was resumed from; None: it was not resumed."""
        return self._record.resumed_from

    @property
    def has_begun(self) -> bool:
        """Whether a step has been taken, in this process or before."""
        return self.state.has_begun

    def _noted(self) -> ir.Model:
        """The Q/DQ model with the parameters as they are now, and the epochs that are still to go."""
        if self.state.summed and not self.schedule.position.step:
            log.warning(
                "accumulate is %d, %d batches have come: no step has been taken yet",
                self._steps.accumulate,
                self.state.summed,
            )
        model = self._trained()
        self._steps.stages.note(model, self.schedule.position.epoch)
        return model

    def _trained(self) -> ir.Model:
        """The Q/DQ model with the parameters as they are now."""
        return with_values(self._steps.graph.qdq, self._steps.graph.layout, self.state.parameters)

    def _batches(self, source: Data, transform: sources.Transform | None = None) -> sources.Batches:
        axis = self._steps.graph.labelling.sample_axis
        checked = sources.batches(source, self._steps.graph.qdq, transform=transform, sample_axis=axis)
        return replace(checked, signature=self._steps.feeds.signature())
