"""Numbers of a run as TensorBoard shows them; written by tensorboardX, which needs neither TensorFlow nor PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxqat.errors import InputError, MissingExtraError
from onnxqat.training.callbacks.ready_made import Callback, Metrics

if TYPE_CHECKING:
    from onnxqat.training.trainer import Trainer


class TensorBoard(Callback):
    """Writes loss and learning rate of every step, and metrics, scales and clipped shares of every epoch.

    Clipped shares of activations are counted on the epoch's last batch.

    Args:
        folder: where event files go; several runs may share a folder above it.

    Example:
        ```python
        trainer.fit(batches, epochs=3, callbacks=[onnxqat.callbacks.TensorBoard("runs/first")])
        ```
    """

    main_only = True

    def __init__(self, folder: str | Path) -> None:
        try:
            import tensorboardX
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "tensorboardX is not installed; run `pip install 'onnxqat[tensorboard]'`"
            ) from error
        self._open = tensorboardX.SummaryWriter
        self._folder = Path(folder)
        self._writer: Any = None

    def on_train_begin(self, trainer: Trainer) -> None:
        """Opens an event file; what an earlier run wrote for later steps than this one's first no longer counts."""
        step = trainer.schedule.position.step
        try:
            self._writer = self._open(str(self._folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written ({error.strerror}); choose another folder") from error

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        """Writes loss and learning rate."""
        step = trainer.schedule.position.step
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/lr", trainer.optimizer.lr * trainer.schedule.factor, step)

    def on_epoch_end(self, trainer: Trainer, metrics: Metrics) -> None:
        """Writes the epoch's numbers, and each quantizer's scale and clipped share."""
        step = trainer.schedule.position.step
        for name, number in metrics.items():
            self._writer.add_scalar(f"epoch/{name}", number, step)
        for quantizer in trainer.statistics().quantizers:
            for bound, scale in zip(("smallest", "largest"), quantizer.scale, strict=True):
                self._writer.add_scalar(f"scale/{quantizer.value}/{bound}", scale, step)
            if quantizer.clipped is not None:
                self._writer.add_scalar(f"clipped/{quantizer.value}", quantizer.clipped, step)

    def on_train_end(self, trainer: Trainer) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
