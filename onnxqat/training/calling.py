"""Who calls which callbacks: of several processes, the first calls those for one process, and all go on or stop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onnxqat.distributed import Workers
from onnxqat.errors import TrainingError
from onnxqat.training.callbacks import Callback, Checkpoints, Metrics

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

_GOES_ON, _STOPS, _FAILED = range(3)


class Callers:
    """The callbacks of a run, as this process calls them.

    Where one sets `trainer.stop` in one process, all stop after the same step; where one raises, all raise.

    Attributes:
        mine: those that this process calls, checkpoints last, as they write what the others have made of a run.
    """

    def __init__(self, callbacks: Sequence[Callback], workers: Workers) -> None:
        called = [callback for callback in callbacks if workers.is_first or not callback.main_only]
        self.mine = sorted(called, key=lambda callback: isinstance(callback, Checkpoints))
        self._workers = workers

    def begin(self, trainer: Trainer) -> None:
        """Calls `on_train_begin`."""
        self._together(trainer, lambda callback: callback.on_train_begin(trainer))

    def step(self, trainer: Trainer, loss: float) -> None:
        """Calls `on_step_end`."""
        self._together(trainer, lambda callback: callback.on_step_end(trainer, loss))

    def epoch(self, trainer: Trainer, metrics: Metrics) -> None:
        """Calls `on_epoch_end`."""
        self._together(trainer, lambda callback: callback.on_epoch_end(trainer, metrics))

    def end(self, trainer: Trainer) -> None:
        """Calls `on_train_end`; after an error other processes may be gone."""
        for callback in self.mine:
            callback.on_train_end(trainer)

    def _together(self, trainer: Trainer, call: Callable[[Callback], None]) -> None:
        try:
            for callback in self.mine:
                call(callback)
        except Exception:
            self._workers.largest(_FAILED)
            raise
        worst = self._workers.largest(_STOPS if trainer.stop else _GOES_ON)
        if worst == _FAILED:
            raise TrainingError("a callback of another process has failed; its own message says why")
        trainer.stop = worst == _STOPS
