"""Ready-made callbacks of `Trainer.fit`: progress, a log of numbers, the best model, early stopping."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import onnx_ir as ir
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from onnxqat.errors import InputError
from onnxqat.graph import files
from onnxqat.graph.aside import put_aside
from onnxqat.metrics.table import Metric
from onnxqat.terminal.progress import console, duration
from onnxqat.training.own import check_own, elsewhere

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)

Metrics = dict[str, float]
#: Steps by whose time that of the others is told, and seconds from which on it is.
TIMED, LONG = 4, 20.0


class Callback:
    """Base class of callbacks; override the methods of interest. To end a run, set `trainer.stop = True`.

    Attributes:
        main_only: whether only the first of several processes calls it, as a callback that writes files needs. It may stop the
            run, but must not call what all processes do together (`Trainer.step`, `gradients`, `evaluate`).
        order: callbacks with a lower number are called first; equal ones are called in the order in which they are given.

    Example:
        ```python
        class StopAtZero(onnxqat.callbacks.Callback):
            def on_step_end(self, trainer, loss):
                trainer.stop = loss == 0
        ```
    """

    main_only = False
    order = 0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called before the first step."""

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Called after each step, with its loss."""

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Called after each epoch: `train_loss`, and with validation data `validation_loss`, `validation_accuracy`."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Called at the end, also after an error."""

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, in a form that JSON holds; empty if nothing needs to be remembered."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave; called after `on_train_begin`."""


class Progress(Callback):
    """A bar on a terminal, one log line per epoch everywhere."""

    main_only = True

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._begun: tuple[int, float] | None = None
        self._told = False

    def on_train_begin(self, trainer: Trainer) -> None:
        """Shows the bar where standard error is a terminal."""
        self._begun, self._told = None, False
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=console, transient=True)
            position = trainer.schedule.position
            self._task = self._bar.add_task("training", total=position.steps, completed=position.step)
            self._bar.start()

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Advances the bar; after a few steps, says how long the others will take, if that is long."""
        self._foretell(trainer)
        if self._bar is not None:
            text = f"{_reached(trainer, running=1)}  loss {loss:.4f}"
            self._bar.update(self._task, completed=trainer.schedule.position.step, description=text)

    def _foretell(self, trainer: Trainer) -> None:
        position, now = trainer.schedule.position, time.monotonic()
        if self._begun is None:
            self._begun = position.step, now  # the first step sets up more than it computes
        done = position.step - self._begun[0]
        if self._told or done < TIMED or position.steps is None:
            return
        self._told, left = True, (position.steps - position.step) * (now - self._begun[1]) / done
        if left > LONG:
            log.info("training: %d more steps, about %s", position.steps - position.step, duration(left))

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Logs the epoch's numbers."""
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        log.info("%s: %s", _reached(trainer), numbers)

    def on_train_end(self, trainer: Trainer) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()


class BestModel(Callback):
    """Keeps and restores the parameters of the epoch that is best on validation data, by the metric of `fit`, accuracy or loss.

    Example:
        ```python
        trainer.fit(batches, epochs=3, validation=others)  # has one by itself
        ```
    """

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Remembers the parameters if the epoch is the best so far."""
        score, state = score_of(metrics, trainer.metric), trainer.state
        if state.best is None or score > state.best[1]:
            state.best = (put_aside([ir.tensor(state.parameters)])[0], score)

    def on_train_end(self, trainer: Trainer) -> None:
        """Restores the best parameters if the run is complete; an interrupted one resumes from where it was."""
        position, state = trainer.schedule.position, trainer.state
        ended = state.batch == 0 and (position.ended or trainer.stop)
        if ended and state.best is not None:
            state.parameters[:] = state.best[0]
            state.best = None


class EarlyStopping(Callback):
    """Ends the run when validation has not improved for some epochs.

    Args:
        patience: number of epochs without improvement after which the run ends.

    Example:
        ```python
        trainer.fit(batches, epochs=50, validation=others, callbacks=[onnxqat.callbacks.EarlyStopping(patience=3)])
        ```
    """

    def __init__(self, patience: int = 2) -> None:
        if patience < 1:
            raise InputError(f"EarlyStopping: patience is {patience}; it must be 1 or more")
        self._patience = patience
        self._best, self._waited = -float("inf"), 0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Resets the count."""
        self._best, self._waited = -float("inf"), 0

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Counts the epochs since the best one."""
        score = score_of(metrics, trainer.metric)
        self._waited = 0 if score > self._best else self._waited + 1
        self._best = max(self._best, score)
        if self._waited >= self._patience:
            trainer.stop = True

    def state(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"best": self._best, "waited": self._waited}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self._best, self._waited = state["best"], state["waited"]


class JsonLines(Callback):
    """Appends one JSON object per step and per epoch to a file.

    Args:
        path: the file.

    Example:
        ```python
        trainer.fit(batches, epochs=3, callbacks=[onnxqat.callbacks.JsonLines("run.jsonl")])
        ```
    """

    main_only = True

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Opens the file."""
        self._file = files.appending(self._path, files.JSON_LINES)

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Writes step, loss and learning rate."""
        rate = trainer.optimizer.lr * trainer.schedule.factor
        self._write({"step": trainer.schedule.position.step, "loss": loss, "lr": rate})

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Writes the epoch's numbers."""
        self._write({"epoch": trainer.schedule.position.epoch, **metrics})

    def on_train_end(self, trainer: Trainer) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, record: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def checked_callbacks(callbacks: Sequence[Callback]) -> Sequence[Callback]:
    """Returns the callbacks; raises InputError where they are no sequence, or one is another library's."""
    if not isinstance(callbacks, Sequence):
        raise InputError(
            f"callbacks: is one {type(callbacks).__name__}; give a list of callbacks{elsewhere(callbacks)}"
        )
    for callback in callbacks:
        check_own("callbacks", callback, Callback, "those of onnxqat.callbacks, or subclass its Callback")
    return callbacks


def _reached(trainer: Trainer, running: int = 0) -> str:
    """Epochs of the run that are done, and a `running` one; steps too where these say when it ends."""
    position, state = trainer.schedule.position, trainer.state
    epoch = position.epoch - state.first_epoch + running
    if position.epochs is not None:
        return f"epoch {epoch}/{position.epochs - state.first_epoch}"
    steps = f", step {position.step - state.first_step}/{position.steps - state.first_step}" if position.steps else ""
    return f"epoch {epoch}{steps}"


def score_of(metrics: Metrics, metric: Metric | None = None) -> float:
    """Returns a score of which higher is better: the metric, where there is one, or validation accuracy, or the negated loss."""
    if metric is not None and f"validation_{metric.name}" in metrics:
        return metrics[f"validation_{metric.name}"] * (1 if metric.higher else -1)
    if "validation_accuracy" in metrics:
        return metrics["validation_accuracy"]
    return -metrics["validation_loss" if "validation_loss" in metrics else "train_loss"]
