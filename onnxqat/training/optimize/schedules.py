"""Length of a run, learning-rate schedules over it, and the position in one that `step()` and `epoch_step()` advance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from onnxqat.errors import InputError

#: Passes over the data where neither epochs nor steps are asked for.
EPOCHS = 3


@dataclass(frozen=True)
class Length:
    """Length of a `fit`, in epochs or in steps; `EPOCHS` where neither is given.

    Attributes:
        epochs: passes over the data; None: the steps say when the run ends.
        steps: optimizer steps; None: the epochs say when the run ends.

    Raises:
        InputError: one is below 1, or both are given.
    """

    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("epochs", self.epochs), ("steps", self.steps)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}; it must be 1 or more")
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"epochs is {self.epochs} and steps is {self.steps}; give one of them")
        if self.steps is None:
            object.__setattr__(self, "epochs", self.epochs or EPOCHS)

    def __str__(self) -> str:
        return f"epochs is {self.epochs}" if self.steps is None else f"steps is {self.steps}"

    def passes(self, batches: int | None, accumulate: int) -> int | None:
        """Passes over so many batches that the run takes, the last of them perhaps not whole; None where that is not known."""
        if self.steps is None or not batches:
            return self.epochs
        return -(-self.steps // steps_of(batches, accumulate))


@dataclass
class Position:
    """Progress of a run.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        steps: optimizer steps of the whole run, None where the data does not tell its length.
        epochs: epochs of the whole run, None where it has no end set, or ends after its steps.
    """

    step: int = 0
    epoch: int = 0
    steps: int | None = None
    epochs: int | None = None

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1, by steps where their number is known and by epochs otherwise."""
        done, total = (self.step, self.steps) if self.steps else (self.epoch, self.epochs)
        return min(done / total, 1.0) if total else 0.0

    @property
    def ended(self) -> bool:
        """Whether the run has reached the end that is set for it."""
        if self.epochs is not None:
            return self.epoch >= self.epochs
        return self.steps is not None and self.step >= self.steps


@runtime_checkable
class Rate(Protocol):
    """A specification: the factor on the learning rate at a position."""

    def factor(self, at: Position) -> float:
        """The factor, 0 or more."""


@dataclass(frozen=True)
class Constant:
    """Keeps the rate constant, after a linear warm-up from 0.

    Attributes:
        warmup_steps: optimizer steps of the warm-up; 0: none.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, schedule=onnxqat.Constant(warmup_steps=20))
        ```
    """

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)

    def factor(self, at: Position) -> float:
        """See `Rate`."""
        return _warmup(at, self.warmup_steps)


@dataclass(frozen=True)
class StepDecay:
    """Multiplies the rate by `gamma` after every `every` epochs, after a linear warm-up from 0.

    Attributes:
        every: epochs between two reductions, 1 or more.
        gamma: factor of a reduction, in (0, 1].
        warmup_steps: optimizer steps of the warm-up; 0: none.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, schedule=onnxqat.StepDecay(every=2, gamma=0.3))
        ```
    """

    every: int = 1
    gamma: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if self.every < 1 or not 0 < self.gamma <= 1:
            raise InputError(
                f"StepDecay: every is {self.every}, gamma {self.gamma}; they must be 1 or more, and in (0, 1]"
            )

    def factor(self, at: Position) -> float:
        """See `Rate`."""
        return _warmup(at, self.warmup_steps) * self.gamma ** (at.epoch // self.every)


@dataclass(frozen=True)
class Cosine:
    """Lowers the rate along half a cosine over the whole run (Loshchilov and Hutter 2017), after a linear warm-up.

    Attributes:
        final: share of the full rate at the end, in [0, 1].
        warmup_steps: optimizer steps of the warm-up; 0: none.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, schedule=onnxqat.Cosine(warmup_steps=20))
        ```
    """

    final: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not 0 <= self.final <= 1:
            raise InputError(f"Cosine: final is {self.final}; it must be in [0, 1]")

    def factor(self, at: Position) -> float:
        """See `Rate`."""
        if at.steps is None and at.epochs is None:
            raise InputError(
                "Cosine: falls over the whole run, whose length is not known in a loop of your own; "
                "call trainer.schedule.plan(epochs, steps_per_epoch) before it"
            )
        fall = 0.5 * (1 + math.cos(math.pi * at.progress))
        return _warmup(at, self.warmup_steps) * (self.final + (1 - self.final) * fall)


class Schedule:
    """A specification and the position in it.

    `Trainer.fit` advances it by itself. In your own loop `Trainer.step` counts the steps; call `epoch_step` after each epoch.
    Call `step` only if you take `Trainer.gradients` and update parameters yourself.

    Attributes:
        spec: the specification.
        position: where the run is.

    Example:
        ```python
        trainer.schedule.plan(epochs=3, steps_per_epoch=len(batches))
        for epoch in range(3):
            for batch in batches:
                trainer.step(batch)
            trainer.schedule.epoch_step()
        ```
    """

    def __init__(self, spec: Rate, position: Position | None = None) -> None:
        self.spec = spec
        self.position = position or Position()

    @property
    def factor(self) -> float:
        """Factor on the learning rate of the next step."""
        return self.spec.factor(self.position)

    def plan(self, epochs: int, steps_per_epoch: int | None = None) -> None:
        """Sets the length of the run that begins now; needed in your own loop for a schedule over the whole run.

        Args:
            epochs: number of epochs.
            steps_per_epoch: optimizer steps in each; None: not known, so the rate changes only between epochs.
        """
        if epochs < 1 or (steps_per_epoch is not None and steps_per_epoch < 1):
            raise InputError(f"plan: epochs is {epochs}, steps_per_epoch {steps_per_epoch}; they must be 1 or more")
        self.position.epochs = self.position.epoch + epochs
        self.position.steps = None if steps_per_epoch is None else self.position.step + epochs * steps_per_epoch

    def step(self) -> None:
        """Counts an optimizer step (`Trainer.step` calls it)."""
        self.position.step += 1

    def epoch_step(self) -> None:
        """Counts an epoch."""
        self.position.epoch += 1


def steps_of(batches: int, accumulate: int) -> int:
    """Optimizer steps of an epoch of so many batches."""
    return -(-batches // accumulate)


def _warmup(at: Position, steps: int) -> float:
    """Grows from 1/steps at the first step to 1."""
    return min((at.step + 1) / steps, 1.0) if steps else 1.0


def _check_warmup(steps: int) -> None:
    if steps < 0:
        raise InputError(f"warmup_steps is {steps}; it must be 0 or more")
