"""What is called while `Trainer.fit` runs: for `fit(callbacks=[…])`, ready-made or one's own."""

from pathlib import Path

from onnxqat.train.callbacks import BestModel, Callback, EarlyStopping, JsonLines
from onnxqat.train.tensorboard import TensorBoard

__all__ = ["BestModel", "Callback", "EarlyStopping", "JsonLines", "TensorBoard"]


def from_options(log: Path | None, tensorboard: Path | None, patience: int | None) -> list[Callback]:
    """The callbacks that the command line asks for."""
    asked: list[Callback] = []
    if log is not None:
        asked.append(JsonLines(log))
    if tensorboard is not None:
        asked.append(TensorBoard(tensorboard))
    if patience is not None:
        asked.append(EarlyStopping(patience))
    return asked
