"""What is called while `Trainer.fit` runs: for `fit(callbacks=[…])`, ready-made or one's own."""

from onnxqat.train.callbacks import BestModel, Callback, EarlyStopping, JsonLines

__all__ = ["BestModel", "Callback", "EarlyStopping", "JsonLines"]
