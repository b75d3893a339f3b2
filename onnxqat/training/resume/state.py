"""State that a run must remember, apart from what it was made with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.training.optimize.schedules import Length, Schedule, steps_of
from onnxqat.training.running.values import Floats

log = logging.getLogger(__name__)


@dataclass
class State:
    """All that a run must remember to go on as if it had never stopped; `checkpoint` writes every field of it.

    Attributes:
        parameters: the flat array of parameters.
        moments: the optimizer's arrays.
        schedule: the learning-rate schedule and the position in it: optimizer steps and epochs done.
        seed: seed of the order of the data.
        accumulated: sum of the gradients of batches that no optimizer step has used yet, each times its weight; None where each
            batch is a step.
        summed: how many batches that sum holds.
        weight: sum of their weights.
        batch: batches of the running epoch that are done.
        loss_sum: sum of their losses.
        batches: batches of a whole epoch of the running `fit`; None where the data does not tell.
        first_epoch: epoch with which the running `fit` began.
        first_step: optimizer steps that were done then.
        running: whether a `fit` has begun that has not come to its end; the next one then goes on with it.
        stop: whether that `fit` is to end after the running step.
        best: parameters of the best epoch so far and its score; None before the first validation.
        random: states of the random number generators when the running epoch began (see `random_state`); None between epochs.
    """

    parameters: Floats
    moments: list[NDArray[Any]]
    schedule: Schedule
    seed: int
    accumulated: Floats | None = None
    summed: int = 0
    weight: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    batches: int | None = None
    first_epoch: int = 0
    first_step: int = 0
    running: bool = False
    stop: bool = False
    best: tuple[Floats, float] | None = None
    random: dict[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a step has been taken, in this process or before."""
        return self.schedule.position.step > 0 or self.summed > 0

    def add(self, gradients: Floats, weight: int) -> None:
        """Adds a batch's gradients, which are means over `weight` labels or samples; multiplies them in place."""
        assert self.accumulated is not None
        gradients *= np.float32(weight)
        self.accumulated += gradients
        self.summed, self.weight = self.summed + 1, self.weight + weight

    def take_mean(self, gradients: Floats) -> bool:
        """Writes the mean of the gradients added so far into an array and resets the sum; False if there are none."""
        if self.accumulated is None or not self.summed:
            return False
        np.multiply(self.accumulated, np.float32(1 / self.weight), out=gradients)
        self.accumulated[:], self.summed, self.weight = 0, 0, 0
        return True

    def begin(self, length: Length, batches: int | None, accumulate: int) -> None:
        """Begins a `fit` of that length over so many batches an epoch, or resumes one that was interrupted.

        What goes on keeps the length that the run had begun with, so that its learning rates are the same.
        """
        position = self.schedule.position
        if not self.running:
            self.stop = False
            if self.batch == 0:
                self.first_epoch, self.first_step = position.epoch, position.step
        epochs = None if length.epochs is None else self.first_epoch + length.epochs
        steps = None if length.steps is None else self.first_step + length.steps
        if self.running and position.epochs == epochs and steps in (None, position.steps):
            return
        if self.running:
            log.warning("%s, the run began with another number; its learning rates change", length)
        if length.epochs is not None and batches is not None:
            steps = self.first_step + length.epochs * steps_of(batches, accumulate)
        self.running, self.batches = True, batches
        position.epochs, position.steps = epochs, steps
