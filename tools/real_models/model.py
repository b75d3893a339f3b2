"""Common parts of the six models: data for training without labels, labelled data for judging, and a score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Examples:
    """A batch of a model's inputs, and the labels of its rows."""

    inputs: Batch
    labels: list[Any]


@dataclass(frozen=True)
class Data:
    """Data of one model; what is in `test` is not in `train`.

    Attributes:
        train: batches to train on; only a score that learns from examples may use their labels.
        test: batches to judge by.
        score: function from the model's first output on every test batch, and all labels, to one number; higher is better.
    """

    train: list[Examples]
    test: list[Examples]
    score: Callable[[list[NDArray[Any]], list[Any]], float]

    def inputs(self) -> list[Batch]:
        """The training batches without labels."""
        return [examples.inputs for examples in self.train]

    def judge(self, run: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]) -> float:
        """Score of a model, given as a function from a batch to its first output."""
        return self.score(outputs_of(run, self.test), labels_of(self.test))


def outputs_of(
    run: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]], batches: Iterable[Examples]
) -> list[NDArray[Any]]:
    """First output on every batch."""
    return [run(examples.inputs) for examples in batches]


def labels_of(batches: Iterable[Examples]) -> list[Any]:
    """Labels of all batches in a row."""
    return [label for examples in batches for label in examples.labels]


def deviation_of_difference(data: Data, one: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Standard error of the difference of two models' scores on the same test batches, given their outputs.

    By the jackknife (Efron and Stein 1981): from the scores without each of the batches in turn.
    """
    found = []
    for left_out in range(len(data.test)):
        labels = labels_of(data.test[:left_out] + data.test[left_out + 1 :])
        scores = (data.score(each[:left_out] + each[left_out + 1 :], labels) for each in (one, other))
        found.append(np.subtract(*scores))
    return float(np.sqrt((len(found) - 1) * np.var(found)))


def share_right(outputs: list[NDArray[np.float32]], labels: list[int]) -> float:
    """Share of samples whose class is predicted correctly, in percent."""
    return 100 * float(np.mean(np.concatenate(outputs).argmax(axis=1) == np.array(labels)))
