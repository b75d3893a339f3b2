"""Calls callbacks in several processes: the first calls those for one process, and all go on or stop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnxqat.distributed import Workers
from onnxqat.errors import TrainingError
from onnxqat.training.callbacks.ready_made import Callback, Metrics

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

_GOES_ON, _STOPS, _FAILED = range(3)


class Callers:
    """The callbacks of a run, as this process calls them.

    Where one sets `trainer.stop` in one process, all stop after the same step; where one raises, all raise.

    Args:
        trainer: what callbacks are given.
        callbacks: those of all processes, in any order.
        workers: the processes.
    """

    def __init__(self, trainer: Trainer, callbacks: Sequence[Callback], workers: Workers) -> None:
        called = [callback for callback in callbacks if workers.is_first or not callback.main_only]
        self._mine = sorted(called, key=lambda callback: callback.order)
        self._trainer, self._workers = trainer, workers

    def begin(self) -> None:
        """Calls `on_train_begin`."""
        self._together(lambda callback: callback.on_train_begin(self._trainer))

    def step(self, loss: float) -> None:
        """Calls `on_step_end`."""
        self._together(lambda callback: callback.on_step_end(self._trainer, loss))

    def epoch(self, metrics: Metrics) -> None:
        """Calls `on_epoch_end`."""
        self._together(lambda callback: callback.on_epoch_end(self._trainer, metrics))

    def end(self) -> None:
        """Calls `on_train_end`; after an error other processes may be gone."""
        for callback in self._mine:
            callback.on_train_end(self._trainer)

    def states(self) -> list[tuple[str, dict[str, Any]]]:
        """Class and state of each callback that has one."""
        return [(type(callback).__name__, state) for callback in self._mine if (state := callback.state())]

    def restore(self, states: list[tuple[str, dict[str, Any]]]) -> None:
        """Gives each callback the state of the one of its class, in order, and takes it from the list."""
        for callback in self._mine:
            found = next((entry for entry in states if entry[0] == type(callback).__name__), None)
            if found is not None:
                states.remove(found)
                callback.restore(found[1])

    def _together(self, call: Callable[[Callback], None]) -> None:
        trainer = self._trainer
        try:
            for callback in self._mine:
                call(callback)
        except Exception:
            self._workers.largest(_FAILED)
            raise
        worst = self._workers.largest(_STOPS if trainer.stop else _GOES_ON)
        if worst == _FAILED:
            raise TrainingError("a callback of another process has failed; its own message says why")
        trainer.stop = worst == _STOPS
