"""Turns a checked batch into the feeds of the training graph: labels in type and range, outputs of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.data.labels import Labelling, aligned
from onnxqat.errors import InputError
from onnxqat.graph import external, io
from onnxqat.runtime import Inference
from onnxqat.runtime.splitting import sample_axes
from onnxqat.training.execution import Execution
from onnxqat.training.loop.teacher import Teacher, teacher_of
from onnxqat.training.training_graph.logits import CLASS_AXIS
from onnxqat.training.training_graph.loss_inputs import LABEL, TEACHER
from onnxqat.training.training_graph.losses import AttachedLoss

Sizes = tuple[int | None, ...]

#: Largest distance from 1 of the sum of probabilities of quantized outputs, for each class.
_ROUNDING = 1 / 255


class Forward(Protocol):
    """Part of a `TrainingGraph` that says what its batches must hold."""

    @property
    def qdq(self) -> ir.Model:
        """The model."""

    @property
    def evaluation(self) -> ir.Model:
        """The model with the loss at its end, whose labels are inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model's outputs."""

    @property
    def loss(self) -> AttachedLoss:
        """Needs of the loss."""

    @property
    def labelling(self) -> Labelling:
        """Settings of the user about labels."""


@dataclass
class Feeds:
    """Prepares batches for one training graph.

    Attributes:
        graph: the training graph, or the parts of one that batches depend on.
        base: requirements on its batches, without labels.
        sizes: the first output's shape as far as the graph says it, None where its rank is not known.
        rows: the axis of `sizes` that is as long as a batch has samples, None where that is not known.
        teacher: gives the teacher's outputs for a batch; None where no loss distills.
    """

    graph: Forward
    base: Signature
    sizes: Sizes | None
    rows: int | None
    teacher: Teacher | None
    _looked: bool = field(default=False, init=False)

    @property
    def loss(self) -> AttachedLoss:
        """Needs of the loss."""
        return self.graph.loss

    def signature(self, *, needs_labels: bool = True) -> Signature:
        """Returns the requirements on a batch; labels may be missing if the loss takes none."""
        names = tuple(self.loss.labels) or ("label",)
        return replace(
            self.base,
            labels=names,
            needs_labels=needs_labels and bool(self.loss.labels),
            without_labels="without labels, train against the float model by --loss distill",
        )

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Inputs, labels and teacher outputs by the training graph's names.

        Raises:
            InputError: a label has the wrong type, shape or range.
        """
        inputs = {name: array for name, array in batch.items() if name not in self.loss.labels}
        named = {f"{LABEL}{name}": self._label(name, batch[name], inputs) for name in self.loss.labels}
        if self._asks_for_axis:
            named[CLASS_AXIS] = np.array([self.loss.decisions.axis])
        taught = self.teacher(inputs) if self.teacher is not None else {}
        return {**inputs, **named, **{f"{TEACHER}{name}": array for name, array in taught.items()}}

    def axes(self) -> dict[str, int]:
        """Axis of the samples in each array that is fed and is made of them: inputs, labels, a teacher's outputs."""
        outputs = self.base.samples.outputs
        found = sample_axes(self.graph.qdq, self.graph.labelling.sample_axis)
        found |= {f"{LABEL}{name}": self._label_axis() for name in self.loss.labels}
        return found | {f"{TEACHER}{name}": outputs.get(name, 0) or 0 for name in self.loss.distilled}

    def _label_axis(self) -> int:
        """The axis of the samples in labels: that of the first output, which may have its classes before it."""
        axis, classes = self.base.samples.outputs.get(self.graph.outputs[0], 0) or 0, self.loss.decisions.axis
        removed = self.loss.judged == "classes" and classes is not None and 0 <= classes < axis
        return axis - removed

    def counted(self, batch: Batch) -> int:
        """Returns the weight of a batch in a mean: the number of its labels that count, or else of its samples."""
        if self.loss.counts_accuracy:
            return int(self.loss.decisions.counted(batch["label"]).sum())
        return self.base.samples.rows(batch, list(self.base.inputs))

    def share(self, part: Batch, batch: Batch, of_rows: float) -> float:
        """Returns the weight of a part's mean in that of the batch: its share of rows, or of the labels that count."""
        if self.loss.decisions.ignored is None or not self.loss.counts_accuracy:
            return of_rows
        ours, all_of_them = self.counted(part), self.counted(batch)
        return ours / all_of_them if all_of_them else of_rows

    def hits(self, output: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Whether each decision of the first output is the label's; empty where labels say none."""
        if self.loss.judged == "classes":
            return self.loss.decisions.hits(output, feeds[f"{LABEL}label"])
        return (
            self.loss.decisions.side_hits(output, feeds[f"{LABEL}label"])
            if self.loss.judged == "sides"
            else np.zeros(0, bool)
        )

    def masked_label(self, output: NDArray[Any], feeds: Mapping[str, NDArray[Any]], *, begun: bool) -> str | None:
        """Returns the error if a label is a class that the model rules out, so that the loss is infinite; else None.

        A probability of 0 says so only before training has `begun`: a model that diverges gives such too.
        """
        if self.loss.judged != "classes":
            return None
        decisions, labels = self.loss.decisions, feeds[f"{LABEL}label"]
        axis, counted = decisions.class_axis(output), decisions.counted(labels)
        places = np.expand_dims(np.where(counted, labels, 0), axis)
        scores = np.take_along_axis(output, places, axis).squeeze(axis)
        ruled_out = counted & (np.isneginf(scores) | (not begun and decisions.activation == "Softmax") & (scores == 0))
        if not ruled_out.any():
            return None
        return (
            f"the loss is infinite: label {int(labels[ruled_out][0])} is a class that the model rules out (output "
            f"{self.graph.outputs[0]!r} masks it); check labels and mask (the parameters are those before this step)"
        )

    def _label(self, name: str, array: NDArray[Any], inputs: Batch) -> NDArray[Any]:
        dtype = self.loss.labels[name]
        if self.loss.judged is None:
            if np.issubdtype(dtype, np.integer) and not np.issubdtype(array.dtype, np.integer):
                raise InputError(
                    f"label {name!r}: has type {array.dtype}, the loss takes class numbers; cast it to int64"
                )
            return np.ascontiguousarray(array, dtype)
        found = (
            self._classes(name, array, inputs) if self.loss.judged == "classes" else self._elements(name, array, inputs)
        )
        if self.loss.judged != "values" and not self.loss.decisions.counted(found).any():
            raise InputError(
                f"label {name!r}: all are {self.loss.decisions.ignored}, which do not count; drop the batch"
            )
        return np.ascontiguousarray(found, dtype)

    def _classes(self, name: str, array: NDArray[Any], inputs: Batch) -> NDArray[Any]:
        decisions = self.loss.decisions
        sizes = self._sizes(inputs)
        told = sizes is not None and decisions.axis is not None and sizes[decisions.axis] is not None
        exact = sizes is not None and None not in sizes
        if not (told or exact):
            sizes = self._output(inputs).shape
        assert sizes is not None
        numbers = decisions.numbers(array, sizes, name)
        if not self._looked and decisions.activation is None:
            self._check_logits(self._first_output(inputs))
        self._looked = True
        return numbers

    def _elements(self, name: str, array: NDArray[Any], inputs: Batch) -> NDArray[Any]:
        sizes = self._sizes(inputs)
        sizes = self._output(inputs).shape if sizes is None else sizes
        if self.loss.judged == "values":
            return aligned(array, sizes, name)
        found = self.loss.decisions.sides(array, sizes, name)
        if not (self._looked or self.loss.decisions.activation or self.loss.decisions.linear):
            self.loss.decisions.check_logits(self._first_output(inputs))
        self._looked = True
        return found

    def _sizes(self, inputs: Batch) -> Sizes | None:
        """The first output's shape for a batch, as far as the graph says it."""
        if self.sizes is None or self.rows is None:
            return self.sizes
        count = self.base.samples.rows(inputs, list(self.base.inputs))
        return (*self.sizes[: self.rows], count, *self.sizes[self.rows + 1 :])

    def _first_output(self, inputs: Batch) -> NDArray[Any]:
        """The output of the first batch, by a session that holds the model's weights no longer than that."""
        name = self.graph.outputs[0]
        found = Inference(self.graph.qdq, [name])(inputs)[name]
        external.forget_all(self.graph.qdq)
        return found

    def _output(self, inputs: Batch) -> NDArray[Any]:
        return self._inference(inputs)[self.graph.outputs[0]]

    @cached_property
    def _inference(self) -> Inference:
        return Inference(self.graph.qdq, self.graph.outputs[:1])

    @cached_property
    def _asks_for_axis(self) -> bool:
        return any(value.name == CLASS_AXIS for value in self.graph.evaluation.graph.inputs)

    def _check_logits(self, output: NDArray[Any]) -> None:
        """Refuses probabilities whose Softmax was not found, as one that is written as other operators."""
        axis = self.loss.decisions.class_axis(output)
        classes = output.shape[axis]
        apart = np.abs(output.sum(axis=axis, dtype=np.float64) - 1)
        if output.min() >= 0 and apart.max() <= 1e-3 + classes * _ROUNDING / 2:
            raise InputError(
                f"output {self.graph.outputs[0]!r}: holds probabilities, which sum up to 1, of no Softmax that is known; "
                "cross_entropy takes logits: make them the first output, or give a function of your own as the loss"
            )


def feeds_for(graph: Forward, teacher: io.ModelLike | None, execution: Execution | None = None) -> Feeds:
    """Returns the preparation of batches for a training graph; the default teacher is its model without quantizers.

    Args:
        graph: the training graph.
        teacher: model that teaches; None: the default.
        execution: how the teacher runs.

    Raises:
        InputError: the teacher lacks an output, or is given to a loss that does not distill.
    """
    base = Signature.of(graph.qdq, (), sample_axis=graph.labelling.sample_axis)
    output = next(value for value in graph.evaluation.graph.outputs if value.name == graph.outputs[0])
    sizes = None if output.shape is None else tuple(d if isinstance(d, int) else None for d in output.shape)
    axis = graph.labelling.sample_axis
    taught = teacher_of(graph.qdq, graph.loss.distilled, teacher, execution or Execution(), axis)
    return Feeds(graph, base, sizes, _rows_axis(graph.qdq, output, base), taught)


def _rows_axis(model: ir.Model, output: ir.Value, base: Signature) -> int | None:
    """The output's axis that is as long as a batch has samples: of the same name, or of none as the inputs' is."""
    axis = base.samples.outputs.get(str(output.name))
    name, of_input = next(iter(base.samples.inputs.items()), ("", None))
    first = next((value for value in model.graph.inputs if value.name == name), None)
    if axis is None or of_input is None or first is None or first.shape is None or output.shape is None:
        return None
    ours, theirs = output.shape[axis] if axis < output.shape.rank() else 0, first.shape[of_input]
    return axis if isinstance(ours, ir.SymbolicDim) and ours == theirs else None
