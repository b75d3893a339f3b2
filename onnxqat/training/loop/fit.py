"""The loop of `Trainer.fit`: epochs of batches, each judged on validation data, from where a broken-off run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from onnxqat.data.batch import Batch
from onnxqat.data.sources import Batches
from onnxqat.errors import InputError
from onnxqat.metrics.table import Metric
from onnxqat.training.callbacks.calling import Callers
from onnxqat.training.health.divergence import LossWatch
from onnxqat.training.loop.evaluation import evaluate
from onnxqat.training.loop.steps import Steps
from onnxqat.training.optimize.schedules import Length
from onnxqat.training.resume import random_state
from onnxqat.training.resume.checkpoint import Remembered, fingerprint

log = logging.getLogger(__name__)

_OTHER_BATCHES = (
    "data: the processes read different batches; give all the same data in the same order, and no sampler of their own"
)


@dataclass
class Fit:
    """One call of `Trainer.fit`.

    Attributes:
        steps: takes the steps.
        source: what is trained on.
        judged: what epochs are judged on; None: they are not.
        remembered: what the checkpoint holds that the run goes on from; None where there is none.
        metric: what epochs are judged by; None: accuracy or loss.
    """

    steps: Steps
    source: Batches
    judged: Batches | None
    remembered: Remembered | None
    metric: Metric | None = None

    def begin(self, length: Length) -> None:
        """Checks the data, and tells state and schedule how long the run will be.

        Raises:
            InputError: the data cannot be read so often, does not fit the model, or is not that of the run that goes on.
        """
        count, accumulate = self._batches_of_an_epoch(), self.steps.accumulate
        passes = length.passes(count, accumulate)
        self.source.check_epochs(passes)
        if self.judged is not None:
            self.judged.check_epochs(passes, "validation")
            if not isinstance(self.judged.source, Iterator):
                first = next(iter(self.judged))
                self.steps.feeds(first)  # wrong labels are refused now, not after an epoch
                if self.metric is not None:
                    evaluate(self.steps, [first], self.metric)
        self.steps.state.begin(length, count, accumulate)
        self.steps.watch = LossWatch()

    def run(self, callers: Callers) -> None:
        """Trains until epochs or steps are done, or a callback stops it; an epoch that the last step cuts short is judged too."""
        state = self.steps.state
        try:
            callers.begin()
            if self.remembered is not None:
                callers.restore(self.remembered.callbacks)
            while not state.stop and (state.batch or not state.schedule.position.ended):
                self._epoch(callers)
            state.running = False
        finally:
            callers.end()

    def _batches_of_an_epoch(self) -> int | None:
        """Number of batches in an epoch; None where the data does not tell."""
        state, accumulate = self.steps.state, self.steps.accumulate
        try:
            count: int | None = len(self.source)
        except TypeError:
            count = None
        if state.running and self.remembered is not None and count != state.batches:
            raise InputError(
                f"data: has {count} batches, the run that is to go on had {state.batches}; "
                "use the same data and batch size"
            )
        if count is not None and count < accumulate:
            log.warning("accumulate is %d, an epoch has %d batches; each epoch is a single step", accumulate, count)
        return count

    def _epoch(self, callers: Callers) -> None:
        """One epoch, or what is left of it, up to the last step of the run; returns early where a callback stops that."""
        steps, state, batches = self.steps, self.steps.state, self._batches()
        while not state.schedule.position.ended and (batch := next(batches, None)) is not None:
            with steps.whole():
                loss = steps.step(batch)
                state.batch, state.loss_sum = state.batch + 1, state.loss_sum + loss
            callers.step(loss)
            if state.stop:
                return
        with steps.whole():
            steps.apply_accumulated()
        metrics = {"train_loss": state.loss_sum / max(state.batch, 1)}
        if self.judged is not None:
            metrics |= {
                f"validation_{name}": value for name, value in evaluate(self.steps, self.judged, self.metric).items()
            }
        with steps.whole():
            state.schedule.epoch_step()
            state.batch, state.loss_sum, state.random = 0, 0.0, None
            callers.epoch(metrics)

    def _batches(self) -> Iterator[Batch]:
        """The batches of the running epoch that are not done."""
        steps, state = self.steps, self.steps.state
        if state.random is None:
            state.random = random_state.capture()
        _, state.random = steps.workers.from_first(lambda: ({}, state.random or {}))
        # where an epoch goes on, or others draw too, so that a loader that draws from it gives the batches of this epoch again
        random_state.restore(state.random)
        done = state.batch
        for index, batch in enumerate(self.source.epoch(state.schedule.position.epoch, state.seed)):
            if index == 0:
                steps.workers.check_same(fingerprint(batch), _OTHER_BATCHES)
            if index >= done:
                yield batch
            elif index == done - 1 and self.remembered is not None:
                self.remembered.compare(batch)
