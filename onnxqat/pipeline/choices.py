"""Choices that the data makes where the user makes none: the loss to train with, and the metric to judge by."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data import sources
from onnxqat.data.labels import Decisions
from onnxqat.errors import InputError
from onnxqat.pipeline.request import AUTO, METRIC_OF, Data, Training
from onnxqat.training.health import preflight
from onnxqat.training.training_graph.named_losses import NAMED_LOSSES

log = logging.getLogger(__name__)


def settled(model: ir.Model, data: Data, training: Training) -> tuple[Training, str]:
    """The settings with the loss that the data has labels for, or else `distill`, which needs none; and the metric of these.

    Args:
        model: the float model, or the Q/DQ model.
        data: data of the stages; the first batch to train on is looked at.
        training: the settings.

    Raises:
        InputError: other losses are to be added to the one that is chosen, or labels fit no loss.
    """
    names = training.loss_names
    if AUTO not in names:
        return training, training.metric
    if len(names) > 1:
        raise InputError(f"loss: {AUTO} stands for one loss, and others are given with it; name all of them")
    fits, reason = _fitting(model, training, data.read(data.train))
    loss = "distill" if fits == "mse" or training.teacher is not None else fits
    log.info("loss: %s, as %s", loss, reason if training.teacher is None else "a teacher is given")
    return replace(training, loss=loss), METRIC_OF.get(NAMED_LOSSES[fits].labels or "", "accuracy")


def judged_by(model: ir.Model, data: Data, training: Training) -> str | None:
    """The metric that epochs are judged by; None: accuracy or loss, as where validation data has no labels for another."""
    asked = training.judged_by
    if asked is None and training.until is not None and training.until[0] not in ("accuracy", "loss"):
        asked = training.until[0]
    if asked is None or data.validation is None:
        return None
    validation = sources.batches(data.read(data.validation), model, sample_axis=training.labelling.sample_axis)
    if "label" in next(iter(validation)):
        return asked
    log.info("epochs are judged by the loss: validation data has no labels for %s", asked)
    return None


def _fitting(model: ir.Model, training: Training, source: sources.Source) -> tuple[str, str]:
    """The loss that the labels of the first batch fit, and the reason."""
    batch = next(iter(sources.batches(source, model, sample_axis=training.labelling.sample_axis)))
    if "label" not in batch:
        return "distill", "the data has no labels"
    try:
        preflight.check(model, "cross_entropy", None, training.labelling, source)
    except InputError as error:
        for loss, reason in _others(model, training, batch["label"]):
            with suppress(InputError):
                preflight.check(model, loss, None, training.labelling, source)
                return loss, reason
        raise InputError(f"{error}; or leave them out of it: --loss distill") from error
    return "cross_entropy", "labels are classes"


def _others(model: ir.Model, training: Training, label: NDArray[Any]) -> list[tuple[str, str]]:
    """Losses of labels that are no classes: decisions where each output is one, values where they are not all 0 or 1."""
    output = model.graph.outputs[0]
    if not np.isin(label, (0, 1)).all():
        return [("mse", "labels are values")]
    sided = Decisions.of(output, training.labelling).are_sides(label, label.shape)
    return [("bce_with_logits", "labels are 0 or 1")] if sided else []
