"""The callback that writes checkpoints during a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from onnxqat.errors import InputError
from onnxqat.training.callbacks.ready_made import Callback, Metrics
from onnxqat.training.resume import checkpoint_files

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Writes a checkpoint after every epoch and keeps the two newest; called after all other callbacks.

    Args:
        folder: folder for the checkpoints; created if it does not exist.
        every: number of batches after which to write one as well; None: only after epochs.

    Example:
        ```python
        trainer.fit(batches, epochs=3, callbacks=[onnxqat.callbacks.Checkpoints("run1", every=100)])
        ```
    """

    main_only = True
    order = 1  # it writes what the others have made of the run

    def __init__(self, folder: str | Path, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise InputError(f"Checkpoints: every is {every}; it must be 1 or more")
        self._folder, self._every = Path(folder), every
        self._kept: list[Path] = []
        self._batches = 0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Refuses a folder that holds the checkpoints of another run, rather than overwrite them."""
        self._make_folder()
        checkpoint_files.clear_folder(self._folder)
        checkpoint_files.check_folder(self._folder, begun=trainer.has_begun)
        present = checkpoint_files.numbered(self._folder)
        self._kept = present[-2:] if trainer.resumed_from is None else [trainer.resumed_from]
        self._batches = 0

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Writes one where it is due."""
        self._batches += 1
        if self._every is not None and self._batches % self._every == 0:
            self._write(trainer)

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Writes one."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """Writes the next and deletes all but this and the one before, also damaged ones that were skipped."""
        if not self._folder.is_dir():
            log.warning("%s: was deleted while the run goes on; it is made again", self._folder)
            self._make_folder()
        path = checkpoint_files.next_path(self._folder, self._kept)
        trainer.save(path)
        self._kept = [*self._kept, path][-2:]
        for old in set(checkpoint_files.numbered(self._folder)) - set(self._kept):
            old.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self._folder}: is not a folder and cannot be made one; choose another path") from error
