"""End of training by a bound: as soon as validation is good enough, before the first step where it is so by then."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxqat.data.sources import Batches
from onnxqat.errors import InputError
from onnxqat.metrics.table import Metric, named
from onnxqat.training.callbacks.ready_made import Callback, Metrics
from onnxqat.training.loop.evaluation import evaluate
from onnxqat.training.loop.steps import Steps

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)

#: Name of a metric, or `loss`, and the value from which on training may end: at least that accuracy, at most that loss.
Until = tuple[str, float]


def check_until(until: Until) -> None:
    """Raises InputError where a bound names no metric, or is no number."""
    metric, bound = until
    if metric != "loss":
        named(metric)
    if not math.isfinite(bound):
        raise InputError(f"until: {metric} of {bound} cannot be reached; give a number")


def goal(until: Until, steps: Steps, judged: Batches | None, metric: Metric | None = None) -> Goal:
    """Returns the callback that ends a run at a bound.

    Args:
        until: the bound.
        steps: what holds the model in training.
        judged: the validation data.
        metric: what epochs are judged by besides accuracy and loss.

    Raises:
        InputError: there is no validation data, or it can be read only once.
    """
    check_until(until)
    if judged is None:
        raise InputError("until: is judged on validation data, and none is given; give validation data")
    judged.check_epochs(2, "validation")
    return Goal(until, lambda: evaluate(steps, judged, metric))


class Goal(Callback):
    """Ends a run at a bound, and leaves it with the parameters that have reached it.

    Args:
        until: the bound.
        evaluate: function that judges the model as it stands on the validation data.
    """

    def __init__(self, until: Until, evaluate: Callable[[], Metrics]) -> None:
        self._metric, self._bound = until
        self._evaluate = evaluate
        self._reached = False

    def on_train_begin(self, trainer: Trainer) -> None:
        """Judges the model before the first step of the run.

        Raises:
            InputError: the loss gives no such metric.
        """
        self._reached, state = False, trainer.state
        if state.batch or state.schedule.position.epoch > state.first_epoch:
            return
        metrics = self._evaluate()
        if self._metric not in metrics:
            raise InputError(f"until: validation gives no {self._metric!r}; use {' or '.join(map(repr, metrics))}")
        self._check(trainer, metrics[self._metric], "before training")

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Ends the run if the bound is reached."""
        self._check(trainer, metrics[f"validation_{self._metric}"], "training ends")

    def on_train_end(self, trainer: Trainer) -> None:
        """Warns if the run is over without."""
        if trainer.schedule.position.ended and not self._reached:
            log.warning("until: %s of %g was not reached; the best epoch is kept", self._metric, self._bound)

    def _check(self, trainer: Trainer, value: float, when: str) -> None:
        higher = self._metric != "loss" and named(self._metric).higher
        if value >= self._bound if higher else value <= self._bound:
            log.info("%s: validation %s is %.4f, and %g is enough", when, self._metric, value, self._bound)
            self._reached = trainer.stop = True
            trainer.state.best = None  # these parameters are to stay, even where others are better by another metric
