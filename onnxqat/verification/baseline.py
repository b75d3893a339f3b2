"""Scores the float model itself on the data, to tell whether model, labels and inputs belong together at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions, aligned
from onnxqat.metrics.table import Metric, Tally
from onnxqat.verification.measures import shown

Array = NDArray[Any]

#: A classifier that closes no more than this share of the gap between a constant answer and a perfect one is at chance.
LEAST_SKILL = 0.05
#: A model whose loss is this many times that of a constant answer does not fit the data.
FAR_ABOVE = 2.0
#: A classifier below this share of the gap does not fit either if its cross entropy is above a constant answer's;
#: one above it may often be right and only too sure.
GOOD_SKILL = 0.5
#: Floats as large as this are raw pixels or the like.
NORMALIZED = 20.0
#: A shift of the labels that raises accuracy by so much is the explanation.
SHIFT_GAIN = 0.2


@dataclass
class Baseline:
    """Sums over the float model's answers, for one metric.

    Attributes:
        judge: the metric.
        decisions: how labels belong to the output.
        tally: statistics of the metric.
        classes: how often each class is the label; empty where labels are no class numbers.
        hits: predictions [N, C] that are the label plus -1, 0 and 1.
        squares: sums over the labels: of 1, of themselves, of their squares; and of the squared errors.
        surprise: sum of -log of the probability that the label was given, and its count.
        decides: whether the outputs are decisions, which can be compared without labels.
        lowest: smallest number of each float input.
        highest: largest likewise.
    """

    judge: Metric
    decisions: Decisions
    tally: Tally = field(init=False)
    classes: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    hits: Array = field(default_factory=lambda: np.zeros(3))
    squares: Array = field(default_factory=lambda: np.zeros(4))
    surprise: Array = field(default_factory=lambda: np.zeros(2))
    decides: bool = False
    lowest: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tally = Tally(self.judge)

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.judge.name

    def add(self, inputs: dict[str, Array], output: Array, label: Array | None) -> None:
        """Takes in a batch: inputs, the float model's first output, labels if there are any."""
        for name, array in inputs.items():
            if np.issubdtype(array.dtype, np.floating) and array.size:
                self.lowest[name] = min(float(array.min()), self.lowest.get(name, np.inf))
                self.highest[name] = max(float(array.max()), self.highest.get(name, -np.inf))
        self.decides |= self.decisions.predicted(output) is not None
        if label is None:
            return
        self.tally.add(output, label)
        if self.metric in ("accuracy", "binary_accuracy", "f1", "iou", "map") or self._top:
            self._add_classes(output, label)
        elif self.metric in ("mse", "psnr"):
            wide = aligned(label, output.shape).astype(np.float64)
            self.squares += [wide.size, wide.sum(), np.square(wide).sum(), np.square(output - wide).sum()]

    @property
    def score(self) -> float | None:
        """The metric; None without labels."""
        return self.tally.score

    @property
    def can_judge(self) -> bool:
        """Whether there is anything to compare another model by: labels, or decisions."""
        return bool(self.tally.parts) or self.decides

    @property
    def constant(self) -> float:
        """Score of the best constant answer: the share of the most frequent classes, or the labels' variance."""
        if self.classes.size:
            answers = self._top or 1
            return float(np.sort(self.classes)[-answers:].sum() / self.classes.sum())
        count, total, squares, _ = self.squares
        return float(max(squares / count - (total / count) ** 2, 0.0)) if count else 0.0

    @property
    def _top(self) -> int:
        """Number of classes that a hit may be among, in `topK`; else 0."""
        digits = self.metric.removeprefix("top")
        return int(digits) if digits != self.metric and digits.isdigit() else 0

    @property
    def suspicion(self) -> str | None:
        """Reason why the float model does not seem to belong to the data; None if it does."""
        found = self._at_chance() or self._above_constant()
        return None if found is None else f"the float model itself {found}; {self._hint()}"

    def _add_classes(self, output: Array, label: Array) -> None:
        if self.metric == "binary_accuracy" or self.decisions.are_sides(label, output.shape):
            sides = self.decisions.sides(label, output.shape)
            self.classes = _added(self.classes, np.bincount((sides > 0.5)[self.decisions.counted(sides)]))
            return
        numbers = self.decisions.numbers(label, output.shape)
        counted = self.decisions.counted(numbers)
        self.classes = _added(self.classes, np.bincount(numbers[counted]))
        if output.ndim != 2 or self.decisions.class_axis(output) != 1:
            return
        numbers, output = numbers[counted], output[counted]
        self.hits += [float((output.argmax(axis=1) == numbers + shift).sum()) for shift in (-1, 0, 1)]
        self.surprise += [_surprise(output, numbers), len(numbers)]

    @property
    def _skill(self) -> float | None:
        """Share of the gap between a constant answer and a perfect one that the model closes; None without classes."""
        score, constant = self.score, self.constant
        if score is None or not self.classes.size or constant == 1 or self.judge.values is None:
            return None
        return (score - constant) / (1 - constant)

    def _at_chance(self) -> str | None:
        if self._skill is None or self._skill > LEAST_SKILL:
            return None
        return (
            f"is at chance: its {self.metric} is {shown(self.metric, self.score)}, a constant answer's "
            f"{shown(self.metric, self.constant)}"
        )

    def _above_constant(self) -> str | None:
        far = FAR_ABOVE
        surprise, samples = self.surprise
        if samples:
            share = self.classes[self.classes > 0] / self.classes.sum()
            name, loss, constant = "cross entropy", surprise / samples, float(-(share * np.log(share)).sum())
            far = 1.0 if self._skill is not None and self._skill < GOOD_SKILL else FAR_ABOVE
        elif self.squares[0]:
            name, loss, constant = "squared error", self.squares[3] / self.squares[0], self.constant
        else:
            return None
        if loss <= far * constant or not constant:
            return None
        return f"does worse than a constant answer: its {name} is {loss:.3g}, a constant answer's {constant:.3g}"

    def _hint(self) -> str:
        tried = self.hits[1]
        for shift, hits in ((-1, self.hits[0]), (1, self.hits[2])):
            if self.surprise[1] and hits - tried > SHIFT_GAIN * self.surprise[1]:
                share = f"{100 * hits / self.surprise[1]:.1f} %"
                return f"the labels are shifted: with label {shift:+d} its accuracy is {share}; change the labels"
        wide = [name for name, high in self.highest.items() if max(high, -self.lowest[name]) > NORMALIZED]
        if wide:
            name = wide[0]
            return (
                f"input {name!r} runs from {self.lowest[name]:.4g} to {self.highest[name]:.4g}: scale it as in the float model's "
                "training (as by (x / 255 - mean) / deviation), or fold the scaling into the model"
            )
        return "check that inputs are scaled and laid out (NCHW or NHWC) as in its training, and that the labels are its classes"


def _added(counts: Array, more: Array) -> Array:
    longer, shorter = (counts, more) if len(counts) >= len(more) else (more, counts)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total


def _surprise(output: Array, label: Array) -> float:
    """Sum of -log p(label) of scores [N, C], which are probabilities or, where they are not, logits."""
    scores = output.astype(np.float64)
    least = float(np.finfo(np.float32).eps)
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-2):
        logs = np.log(np.maximum(scores, least))
    else:
        logs = scores - scores.max(axis=1, keepdims=True)
        logs = logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return float(-logs[np.arange(len(label)), label].sum())
