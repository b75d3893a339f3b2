"""Callbacks of Keras's `fit`: start epochs of quantization, and statistics of the quantizers for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

from onnxqat.graph import io
from onnxqat.keras.model import graph_of, to_model
from onnxqat.training.statistics import statistics


def callbacks(model: keras.Model, log_dir: str | os.PathLike[str] | None = None) -> list[keras.callbacks.Callback]:
    """Additions of quantization-aware training to a `fit`: start epochs, and with a folder statistics for TensorBoard.

    Args:
        model: what `as_model` returned.
        log_dir: folder for event files: of each quantizer, scale, drift and share of clipped weights after every epoch.

    Example:
        ```python
        model.fit(dataset, epochs=3, callbacks=onnxqat.keras.callbacks(model, log_dir="runs/first"))
        ```
    """
    found: list[keras.callbacks.Callback] = [StartEpochs(model)]
    return found if log_dir is None else [*found, Statistics(model, log_dir)]


class StartEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Begins quantization at the epochs that `Config.weight_start_epoch` and `activation_start_epoch` name."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._graph = graph_of(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Enters the epoch's stage."""
        self._graph.wrapped.schedule.epoch_step(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts the epoch, so that what is saved from here on begins with the next."""
        self._graph.wrapped.schedule.epoch_step(epoch + 1)


class Statistics(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes scales, their drift and shares of clipped weights as TensorBoard shows them, after every epoch."""

    def __init__(self, model: keras.Model, log_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._wrapped_model, self._folder = model, os.fspath(log_dir)
        self._initial = io.load(to_model(model))
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens an event file."""
        self._writer = tf.summary.create_file_writer(self._folder)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the numbers."""
        found = statistics(self._initial, io.load(to_model(self._wrapped_model)))
        with self._writer.as_default(step=epoch):
            for one in found.quantizers:
                for bound, scale in zip(("smallest", "largest"), one.scale, strict=True):
                    tf.summary.scalar(f"scale/{one.value}/{bound}", scale)
                tf.summary.scalar(f"scale_drift/{one.value}", one.scale_drift)
                if one.clipped is not None:
                    tf.summary.scalar(f"clipped/{one.value}", one.clipped)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
