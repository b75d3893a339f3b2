"""Checks, before a model is quantized, that a loss, a teacher and labels fit the float model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.data.labels import Labelling
from onnxqat.graph import io
from onnxqat.training.loop.feeds import feeds_for
from onnxqat.training.training_graph.losses import AttachedLoss, Loss, attach_loss


@dataclass(frozen=True)
class _Forward:
    """The part of a `TrainingGraph` that batches are checked by: here of the float model."""

    qdq: ir.Model
    evaluation: ir.Model
    outputs: tuple[str, ...]
    loss: AttachedLoss
    labelling: Labelling


def check(
    model: ir.Model, loss: Loss, teacher: io.ModelLike | None, labelling: Labelling, *given: sources.Source
) -> None:
    """Tries loss, teacher and the first batch of each source on a float model.

    Args:
        model: the float model, of an opset that quantizers can be inserted into; it is not changed.
        loss: see `Trainer`.
        teacher: model for the loss `distill`.
        labelling: what the user says about labels.
        given: what is trained on, and what epochs are judged on.

    Raises:
        InputError: the loss is not known or does not fit the outputs, a batch lacks labels or has wrong ones, or the teacher
            has other outputs.
    """
    evaluation = model.clone()
    outputs = tuple(str(value.name) for value in evaluation.graph.outputs)
    forward = _Forward(model, evaluation, outputs, attach_loss(evaluation, loss, labelling), labelling)
    feeds = feeds_for(forward, teacher)
    for source in given:
        batches = replace(
            sources.batches(source, model, sample_axis=labelling.sample_axis), signature=feeds.signature()
        )
        feeds(next(iter(batches)))
