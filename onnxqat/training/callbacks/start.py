"""The model before training as a candidate: where no epoch is better on validation data, it is what training returns."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.graph.aside import put_aside
from onnxqat.training.callbacks.ready_made import Callback, Metrics, score_of

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)


class Start(Callback):
    """Judges the model before the first step; an epoch must be better to be kept.

    Args:
        validation: the data that epochs are judged on.
    """

    def __init__(self, validation: sources.Source) -> None:
        self._validation = validation
        self._score: float | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Judges the model, unless the run goes on from a checkpoint, or is over before it begins."""
        state = trainer.state
        if trainer.stop or state.batch or state.schedule.position.epoch > state.first_epoch:
            return
        metrics = trainer.evaluate(self._validation, metric=trainer.metric)
        log.info("before training: %s", ", ".join(f"validation {name} {value:.4f}" for name, value in metrics.items()))
        self._score = score_of({f"validation_{name}": value for name, value in metrics.items()}, trainer.metric)
        state.best = (put_aside([ir.tensor(state.parameters)])[0], self._score)

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Remembers whether an epoch was better."""
        if self._score is not None and score_of(metrics, trainer.metric) > self._score:
            self._score = None

    def on_train_end(self, trainer: Trainer) -> None:
        """Says so if none was."""
        if trainer.schedule.position.ended and self._score is not None:
            log.info("no epoch was better on validation data than the model before training, which is kept")
