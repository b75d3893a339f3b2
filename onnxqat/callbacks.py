"""Callbacks of `Trainer.fit(callbacks=[…])`: the ready-made ones, and the base class for the user's own."""

from pathlib import Path

from onnxqat.errors import InputError
from onnxqat.training.callbacks.checkpoints import Checkpoints
from onnxqat.training.callbacks.history import History
from onnxqat.training.callbacks.ready_made import BestModel, Callback, EarlyStopping, JsonLines
from onnxqat.training.callbacks.tensorboard import TensorBoard
from onnxqat.training.callbacks.trackers import MLflow, WandB

__all__ = [
    "BestModel",
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "History",
    "JsonLines",
    "MLflow",
    "TensorBoard",
    "WandB",
]


def from_options(
    log: Path | None, tensorboard: Path | None, patience: int | None, checkpoint: Path | None, every: int | None
) -> list[Callback]:
    """The callbacks that the command line asks for."""
    asked: list[Callback] = []
    if log is not None:
        asked.append(JsonLines(log))
    if tensorboard is not None:
        asked.append(TensorBoard(tensorboard))
    if patience is not None:
        asked.append(EarlyStopping(patience))
    if checkpoint is not None:
        asked.append(Checkpoints(checkpoint, every))
    elif every is not None:
        raise InputError("--checkpoint-every: no folder is given; add --checkpoint DIR")
    return asked
