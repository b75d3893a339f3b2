"""What a run must remember, apart from what it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxqat.train.engine import Floats
from onnxqat.train.schedules import Schedule


@dataclass
class State:
    """All that a run must remember to go on as if it had never stopped; `checkpoint` writes every field of it.

    Attributes:
        parameters: the flat array of parameters.
        moments: the optimizer's flat arrays.
        schedule: the learning-rate schedule and the position in it: optimizer steps and epochs done.
        seed: what the order of the data is drawn from.
        accumulated: sum of the gradients of batches that no optimizer step has used yet; None where each batch is a step.
        summed: how many batches that sum holds.
        batch: batches of the running epoch that are done.
        loss_sum: sum of their losses.
        batches: batches of a whole epoch of the running `fit`; None where the data does not tell.
        first_epoch: epoch with which the running `fit` began.
        running: whether a `fit` has begun that has not come to its end; the next one then goes on with it.
        stop: whether that `fit` is to end after the running step.
        best: parameters of the best epoch so far and its score; None before the first validation.
        random: states of the random number generators when the running epoch began (see `random_state`); None between epochs.
    """

    parameters: Floats
    moments: list[Floats]
    schedule: Schedule
    seed: int
    accumulated: Floats | None = None
    summed: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    batches: int | None = None
    first_epoch: int = 0
    running: bool = False
    stop: bool = False
    best: tuple[Floats, float] | None = None
    random: dict[str, Any] | None = None
