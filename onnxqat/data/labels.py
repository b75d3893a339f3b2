"""Relation of labels to a model's first output: one rule for losses, validation and metrics.

Class numbers have the output's shape without its class axis. The user names that axis; otherwise the model's Softmax shows it, or
the labels' shape if it fits one axis only. Labels in the output's own shape belong to its elements: with one column, or behind
Sigmoid, each element is a decision between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.label_advice import Sizes, equal, hint, misfit, not_numbers, shown
from onnxqat.errors import InputError
from onnxqat.graph.ending import channel_axis, ending, is_linear

Array = NDArray[Any]


@dataclass(frozen=True)
class Labelling:
    """Settings of the user about labels.

    Attributes:
        class_axis: class axis of the first output; None: the model or the labels' shape shows it.
        ignore_label: class number that is ignored; None: all count.
        sample_axis: axis of the inputs that counts samples; None: the model shows it (see `samples`).
    """

    class_axis: int | None = None
    ignore_label: int | None = None
    sample_axis: int | None = None


@dataclass
class Decisions:
    """Decisions that a model makes with its first output, as far as the graph and the labels tell.

    Attributes:
        activation: "Softmax", "LogSoftmax" or "Sigmoid" where the output comes from one, else None.
        axis: the class axis; None until labels have shown it.
        ignored: class number that is ignored.
        samples: the output's axis that counts samples, which cannot be the class axis.
        sided: whether the labels' shape has shown that each element of the output is a decision of its own.
        linear: whether the output comes straight from a linear layer.
        channels: the axis of that layer's channels, along which answers are compared where no labels tell the class axis.
        classes: number of classes; None: the graph does not tell.
    """

    activation: str | None = None
    axis: int | None = None
    ignored: int | None = None
    samples: int | None = 0
    sided: bool = False
    linear: bool = True
    channels: int | None = None
    classes: int | None = None

    @classmethod
    def of(cls, output: ir.Value, labelling: Labelling, samples: int | None = 0) -> Decisions:
        """The decisions of an output.

        Raises:
            InputError: `class_axis` is not an axis of it, or another than that of its Softmax.
        """
        found = ending(output)
        rank = None if output.shape is None else output.shape.rank()
        axis = _checked_axis(labelling.class_axis, rank)
        told = None if found is None else found.axis
        if axis is not None and told is not None and axis != told:
            raise InputError(
                f"class_axis is {axis}, but the model's Softmax is along axis {told}; leave class_axis out"
            )
        if axis is None and rank == 2 and samples is not None:
            told = 1 - samples if told is None else told
        known = axis if axis is not None else told
        activation = None if found is None else found.activation.op_type
        size = None if output.shape is None or known is None else output.shape[known]
        return cls(
            activation,
            known,
            labelling.ignore_label,
            samples,
            linear=is_linear(output),
            channels=channel_axis(output),
            classes=size if isinstance(size, int) else None,
        )

    def numbers(self, label: Array, sizes: Sizes, name: str = "label") -> NDArray[np.int64]:
        """Class numbers in the output's shape without its class axis.

        Args:
            label: the labels as the user gives them; a column [N, 1] will do for [N].
            sizes: the output's shape.
            name: what the labels are called.

        Raises:
            InputError: they are no class numbers, do not fit the shape, or are not among the classes.
        """
        if label.dtype == bool or not np.issubdtype(label.dtype, np.integer):
            raise InputError(f"label {name!r}: {not_numbers(label, sizes)}")
        self.axis = self._axis(label, sizes, name)
        expected = [*sizes[: self.axis], *sizes[self.axis + 1 :]]
        found = _reshaped(label, expected)
        if found is None:
            raise InputError(f"label {name!r}: {misfit(label, sizes, expected)}")
        self._check_range(found, sizes[self.axis], name)
        return np.ascontiguousarray(found, np.int64)

    def counted(self, label: Array) -> NDArray[np.bool_]:
        """Returns the mask of the labels that count."""
        return np.ones(label.shape, bool) if self.ignored is None else np.asarray(label != self.ignored)

    def hits(self, output: Array, label: Array) -> NDArray[np.bool_]:
        """Compares decisions with labels, without ignored ones: classes, or sides where labels belong to elements."""
        if self.are_sides(label, output.shape):
            return self.side_hits(output, label)
        numbers = self.numbers(label, output.shape)
        axis = self.class_axis(output)
        hits = output.argmax(axis=axis) == numbers
        samples = 0 if self.samples is None or self.samples == axis else self.samples - (axis < self.samples)
        return self._by_sample(hits, self.counted(numbers), samples)

    def side_hits(self, output: Array, label: Array) -> NDArray[np.bool_]:
        """Says for each element that counts whether it is on its label's side of the threshold."""
        sides = self.sides(label, output.shape)
        self.sided = True
        return self._by_sample(self.chosen(output) == (sides > 0.5), self.counted(sides), self.samples or 0)

    @staticmethod
    def _by_sample(hits: Array, counted: Array, samples: int) -> NDArray[np.bool_]:
        """The hits that count, one sample after another."""
        if samples:
            hits, counted = np.moveaxis(hits, samples, 0), np.moveaxis(counted, samples, 0)
        return np.asarray(hits[counted])

    def class_axis(self, output: Array) -> int:
        """The class axis, of an output whose labels have told it."""
        assert self.axis is not None
        return self.axis % output.ndim

    def sides(self, label: Array, sizes: Sizes, name: str = "label") -> Array:
        """Labels between 0 and 1, one for each element of the output, in its shape.

        Raises:
            InputError: they do not fit, or are not between 0 and 1.
        """
        found = aligned(label, sizes, name)
        numbers = found if self.ignored is None else found[found != self.ignored]
        if numbers.size and (numbers.min() < 0 or numbers.max() > 1):
            raise InputError(
                f"label {name!r}: runs from {numbers.min():g} to {numbers.max():g}; each output is a decision between 0 "
                f"and 1, so labels must be too{hint(numbers, 2)}"
            )
        return found

    def are_sides(self, label: Array, sizes: Sizes) -> bool:
        """Whether each element of an output of one column, or of one behind Sigmoid, has a label."""
        column = len(sizes) == 1 or (1 in [d for axis, d in enumerate(sizes) if axis != self.samples])
        if self.axis is not None and len(sizes) > 1:
            column = sizes[self.axis] == 1
        return (column or self.activation == "Sigmoid") and _reshaped(label, sizes) is not None

    def chosen(self, output: Array) -> Array:
        """On which side of the threshold each element is: 0.5 behind Sigmoid, else 0.

        Raises:
            InputError: the output looks like probabilities, but comes from no Sigmoid.
        """
        self.check_logits(output)
        return np.asarray(output > (0.5 if self.activation == "Sigmoid" else 0))

    def check_logits(self, output: Array) -> None:
        """Refuses what looks like probabilities of a Sigmoid that is written as other operators: they are not logits."""
        if self.activation is None and not self.linear and output.size and output.min() >= 0 and output.max() <= 1:
            raise InputError(
                "output: lies between 0 and 1 as probabilities do, but comes from no Sigmoid that is known; make the logits the "
                "first output, or give a loss or metric of your own"
            )

    def predicted(self, output: Array) -> Array | None:
        """Classes, or sides, that an output predicts; None where nothing shows the class axis."""
        if not np.issubdtype(output.dtype, np.floating):
            return None
        column = output.ndim < 2 or self.axis is None or output.shape[self.axis] == 1
        if self.sided or (self.activation == "Sigmoid" and column):
            return self.chosen(output)
        axis = next((a for a in (self.axis, self.channels, 1 if output.ndim == 2 else None) if a is not None), None)
        if axis is None or not -output.ndim <= axis < output.ndim or output.shape[axis] < 2:
            return None
        return np.asarray(output.argmax(axis=axis))

    def _axis(self, label: Array, sizes: Sizes, name: str) -> int:
        if len(sizes) < 2:
            raise InputError(f"output: has shape {shown(sizes)}, no class scores [N, C]; choose another metric or loss")
        if self.axis is not None:
            return self.axis % len(sizes)
        fitting = [axis for axis in range(len(sizes)) if axis != self.samples and _fits(label, sizes, axis)]
        if len(fitting) > 1:
            raise InputError(
                f"label {name!r}: of shape {list(label.shape)} fits an output of shape {shown(sizes)} with classes along "
                f"axis {' or '.join(map(str, fitting))}; say which by class_axis (--class-axis)"
            )
        if not fitting:
            expected = [*sizes[:1], *sizes[2:]]
            raise InputError(f"label {name!r}: {misfit(label, sizes, expected)}")
        return fitting[0]

    def _check_range(self, numbers: Array, classes: int | None, name: str) -> None:
        if classes == 1:
            raise InputError(
                "output: has one column, which is a decision between two, not between classes; use the loss "
                "bce_with_logits or the metric binary_accuracy, with labels between 0 and 1"
            )
        numbers = numbers[self.counted(numbers)]
        if classes is None or not numbers.size:
            return
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"label {name!r}: holds {low} to {high}, the model has {classes} classes, 0 to {classes - 1}; "
                f"check the labels{hint(numbers, classes)}"
            )


def aligned(label: Array, sizes: Sizes, name: str = "label") -> Array:
    """Labels in the shape of the output to whose elements they belong; axes of one element may differ.

    Raises:
        InputError: they have another shape.
    """
    found = _reshaped(label, sizes)
    if found is None:
        raise InputError(
            f"label {name!r}: has shape {list(label.shape)}, the output {shown(sizes)}; they must be equal; reshape it"
        )
    return found


def _checked_axis(axis: int | None, rank: int | None) -> int | None:
    if axis is None:
        return None
    if rank is not None and not -rank <= axis < rank:
        raise InputError(f"class_axis is {axis}; the first output has axes 0 to {rank - 1}")
    return axis if rank is None else axis % rank


def _fits(label: Array, sizes: Sizes, axis: int) -> bool:
    """Whether labels have these sizes without that axis. It may be kept with one element, and labels may be a column."""
    return sizes[axis] != 1 and _reshaped(label, [*sizes[:axis], *sizes[axis + 1 :]]) is not None


def _reshaped(label: Array, sizes: Sizes) -> Array | None:
    """The labels in these sizes, if they differ only in axes of one element."""
    if label.ndim == len(sizes) and equal(label.shape, sizes):
        return label
    if not label.ndim or not equal([d for d in label.shape if d != 1], [d for d in sizes if d != 1]):
        return None
    places = iter(d for d in label.shape if d != 1)
    return label.reshape([1 if d == 1 else next(places) for d in sizes])
