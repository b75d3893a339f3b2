"""Metrics that are no means over samples: each adds up statistics of the batches, and makes one number of their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions, aligned
from onnxqat.errors import InputError
from onnxqat.metrics.extra import optional

Array = NDArray[Any]


def overlaps(output: Array, label: Array, decisions: Decisions) -> Array:
    """For each class, how often it is both predicted and the label, how often predicted, how often the label: [3 · classes].

    Where each element of the output is a decision of its own, the classes are these elements, each being on.
    """
    if decisions.are_sides(label, output.shape):
        found, wanted = _by_sample(output, label, decisions)
        found, counted = decisions.chosen(found), decisions.counted(wanted)
        wanted = wanted > 0.5
        parts = [((one & counted).sum(axis=0)) for one in (found & wanted, found, wanted)]
        return np.concatenate(parts).astype(np.float64)
    numbers = decisions.numbers(label, output.shape)
    axis, counted = decisions.class_axis(output), decisions.counted(numbers)
    found, wanted = output.argmax(axis=axis)[counted], numbers[counted]
    counts = [np.bincount(one, minlength=output.shape[axis]) for one in (wanted[found == wanted], found, wanted)]
    return np.concatenate(counts).astype(np.float64)


def f1(total: Array) -> float:
    """Mean of the F1 scores of all classes that occur, 2 · both / (predicted + label)."""
    both, found, wanted = total.reshape(3, -1)
    occur = found + wanted > 0
    return float(np.mean(2 * both[occur] / (found + wanted)[occur])) if occur.any() else 0.0


def iou(total: Array) -> float:
    """Mean of intersection over union of all classes that occur, both / (predicted + label - both)."""
    both, found, wanted = total.reshape(3, -1)
    union = found + wanted - both
    return float(np.mean(both[union > 0] / union[union > 0])) if union.any() else 0.0


def surprise(output: Array, label: Array, decisions: Decisions) -> Array:
    """Sum of -log of the probability that each label was given, and their number: [2]."""
    numbers = decisions.numbers(label, output.shape)
    scores = np.moveaxis(output.astype(np.float64), decisions.class_axis(output), -1)
    if decisions.activation == "Softmax":
        scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    elif decisions.activation != "LogSoftmax":
        scores = scores - scores.max(axis=-1, keepdims=True)
        scores = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    counted = decisions.counted(numbers)
    given = np.take_along_axis(scores, np.where(counted, numbers, 0)[..., None], axis=-1)[..., 0]
    return np.array([-given[counted].sum(), counted.sum()])


def perplexity(total: Array) -> float:
    """Exponential of the mean surprise."""
    return float(np.exp(total[0] / total[1]))


def moments(output: Array, label: Array, decisions: Decisions) -> Array:
    """Sums over all elements: of 1, of outputs, of labels, of their squares and of their products: [6]."""
    x, y = output.astype(np.float64).ravel(), aligned(label, output.shape).astype(np.float64).ravel()
    return np.array([x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y])


def pearson(total: Array) -> float:
    """Pearson's correlation of outputs and labels; 0 where one of them is constant."""
    count, x, y, xx, yy, xy = total
    spread = np.sqrt(max(count * xx - x * x, 0.0)) * np.sqrt(max(count * yy - y * y, 0.0))
    return float((count * xy - x * y) / spread) if spread else 0.0


def word_errors(output: Array, label: Array, decisions: Decisions) -> Array:
    """Words that were replaced, left out or added (by jiwer), and words of the labels: [2].

    Words are class numbers [N, length], filled up with negative numbers or the ignored label. Outputs that are as long are words
    as they are; others are decoded as CTC does it greedily: repeats count once, class 0 is the blank.
    """
    process = optional("jiwer", "jiwer", "metric 'wer'").process_words
    if output.ndim != 3 or label.ndim != 2 or len(label) != output.shape[decisions.samples or 0]:
        raise InputError(
            f"metric 'wer': takes scores [N, time, classes] and labels [N, length], not {list(output.shape)} and "
            f"{list(label.shape)}; choose another metric"
        )
    axis = 2 if decisions.axis is None else decisions.axis
    found = np.moveaxis(output.argmax(axis=axis), (decisions.samples or 0) - (axis < (decisions.samples or 0)), 0)
    errors = words = 0
    for said, wanted in zip(found, label, strict=True):
        given = wanted[(wanted >= 0) & decisions.counted(wanted)]
        heard = said[: len(given)] if label.shape[1] == len(said) else _collapsed(said)
        words += len(given)
        if not len(given):
            errors += len(heard)
            continue
        result = process(" ".join(map(str, given)), " ".join(map(str, heard)))
        errors += result.substitutions + result.deletions + result.insertions
    return np.array([errors, words], np.float64)


def rate(total: Array) -> float:
    """Errors by words."""
    return float(total[0] / total[1]) if total[1] else 0.0


def ranked(output: Array, label: Array, decisions: Decisions) -> Array:
    """For each sample the probability of each class, and whether it is the label: [decisions, 2 · classes]."""
    if decisions.are_sides(label, output.shape):
        found, wanted = _by_sample(output, label, decisions)
        return np.concatenate([found.astype(np.float64), wanted > 0.5], axis=1)
    numbers = decisions.numbers(label, output.shape)
    scores = np.moveaxis(output.astype(np.float64), decisions.class_axis(output), -1)
    if decisions.activation != "Softmax":
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
    counted = decisions.counted(numbers)
    return np.concatenate([scores[counted], np.eye(scores.shape[-1])[numbers[counted]]], axis=1)


def average_precision(rows: Array) -> float:
    """Mean of the average precision (by scikit-learn) of all classes that occur."""
    precision = optional("sklearn.metrics", "scikit-learn", "metric 'map'").average_precision_score
    scores, labels = np.split(rows, 2, axis=1)
    occur = labels.any(axis=0)
    return (
        float(np.mean([precision(labels[:, i], scores[:, i]) for i in np.flatnonzero(occur)])) if occur.any() else 0.0
    )


def _by_sample(output: Array, label: Array, decisions: Decisions) -> tuple[Array, Array]:
    """Outputs and labels of decisions: [N, elements]."""
    sides = decisions.sides(label, output.shape)
    found, wanted = (np.moveaxis(one, decisions.samples or 0, 0) for one in (output, sides))
    return found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)


def _collapsed(said: Array) -> Array:
    changed = np.concatenate([[True], said[1:] != said[:-1]])
    kept: Array = said[changed & (said != 0)]
    return kept
