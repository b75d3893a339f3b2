"""From a checked batch to what the training graph is fed: labels of the right type and range, and a teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.batch import Batch, Signature
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.without import without_quantizers
from onnxqat.runtime import Inference
from onnxqat.train.graph import TrainingGraph
from onnxqat.train.losses import TEACHER, AttachedLoss

Teacher = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Feeds:
    """Prepares batches for one training graph.

    Attributes:
        loss: what the loss needs.
        shapes: static shape of each label where the graph says it, None where a dimension is free.
        classes: says for a batch how many classes there are; None where labels are not class numbers.
        teacher: gives the teacher's outputs for a batch; None where no loss distills.
    """

    loss: AttachedLoss
    shapes: Mapping[str, tuple[int | None, ...] | None]
    classes: Callable[[Batch], int] | None
    teacher: Teacher | None

    def signature(self, model: ir.Model, *, needs_labels: bool = True) -> Signature:
        """What a batch must hold; without labels where the loss takes none (one named `label` is let through)."""
        names = tuple(self.loss.labels) or ("label",)
        return Signature.of(model, names, needs_labels=needs_labels and bool(self.loss.labels))

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Inputs, labels and teacher outputs by the training graph's names.

        Raises:
            InputError: a label has the wrong type, shape or range.
        """
        labels = {name: self._label(name, batch[name], batch) for name in self.loss.labels}
        inputs = {name: array for name, array in batch.items() if name not in labels}
        taught = self.teacher(inputs) if self.teacher is not None else {}
        return {**inputs, **labels, **{f"{TEACHER}{name}": array for name, array in taught.items()}}

    def _label(self, name: str, array: NDArray[Any], batch: Batch) -> NDArray[Any]:
        dtype = self.loss.labels[name]
        if np.issubdtype(dtype, np.integer) and not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"label {name!r}: has type {array.dtype}, the loss takes class numbers; cast it to int64")
        self._check_shape(name, array, batch)
        if self.classes is not None:
            low, high, classes = int(array.min()), int(array.max()), self.classes(batch)
            if low < 0 or high >= classes:
                raise InputError(
                    f"label {name!r}: runs from {low} to {high}, the model has {classes} classes; "
                    f"labels must be 0 to {classes - 1}"
                )
        return np.ascontiguousarray(array, dtype)

    def _check_shape(self, name: str, array: NDArray[Any], batch: Batch) -> None:
        shape = self.shapes.get(name)
        if shape is None:
            return
        rows = next((a.shape[0] for n, a in batch.items() if n not in self.loss.labels and a.ndim), None)
        wanted = (rows if shape and shape[0] is None else shape[0], *shape[1:]) if shape else shape
        fits = array.ndim == len(wanted) and all(d is None or d == n for d, n in zip(wanted, array.shape, strict=True))
        if not fits:
            text = ", ".join("any" if d is None else str(d) for d in wanted)
            raise InputError(f"label {name!r}: has shape {list(array.shape)}, the loss takes [{text}]; reshape it")


def feeds_for(graph: TrainingGraph, teacher: io.ModelLike | None) -> Feeds:
    """What prepares batches for a training graph; the default teacher is its model without quantizers.

    Raises:
        InputError: the teacher lacks an output, or is given to a loss that does not distill.
    """
    taught = None
    if graph.loss.distilled:
        model = io.load(teacher) if teacher is not None else without_quantizers(graph.qdq)
        present = {value.name for value in model.graph.outputs}
        missing = [name for name in graph.loss.distilled if name not in present]
        if missing:
            raise InputError(f"teacher: has no output {missing[0]!r}; give a model with the same outputs")
        taught = Inference(model, graph.loss.distilled)
    elif teacher is not None:
        raise InputError("teacher: given, but the loss does not distill; add 'distill' to the loss")
    shapes = _label_shapes(graph.evaluation, graph.loss)
    return Feeds(graph.loss, shapes, _classes(graph), taught)


def _classes(graph: TrainingGraph) -> Callable[[Batch], int] | None:
    """Says how many classes the first output has: by its shape, or by running the model where that leaves it open.

    ONNX Runtime would read past the logits' end for a class that does not exist, so the number must be known.
    """
    if not graph.loss.counts_accuracy:
        return None
    shape = next(value.shape for value in graph.evaluation.graph.outputs if value.name == graph.outputs[0])
    if shape is not None and shape.rank() > 1 and isinstance(shape[1], int):
        known = int(shape[1])
        return lambda _: known
    return _cache_first(lambda batch: int(Inference(graph.qdq)(batch)[graph.outputs[0]].shape[1]))


def _cache_first(function: Callable[[Batch], int]) -> Callable[[Batch], int]:
    """A function that answers every call as it did the first."""
    answers: list[int] = []

    def answer(batch: Batch) -> int:
        if not answers:
            answers.append(function(batch))
        return answers[0]

    return answer


def _label_shapes(evaluation: ir.Model, loss: AttachedLoss) -> dict[str, tuple[int | None, ...] | None]:
    """Static shapes of the label inputs of a graph."""
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    for value in evaluation.graph.inputs:
        if value.name in loss.labels:
            dims = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
            shapes[str(value.name)] = dims
    return shapes
