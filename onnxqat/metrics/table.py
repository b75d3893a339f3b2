"""All metrics by name, and the user's own: what each makes of a batch, and what of all batches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions
from onnxqat.data.sources import resolve
from onnxqat.errors import InputError
from onnxqat.metrics import samples, sums
from onnxqat.process.foreign import guarded

Array = NDArray[Any]
#: The user's function from the first output and the labels of a batch to one value for each sample.
Function = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Metric:
    """A metric of a model's first output.

    Attributes:
        name: its name.
        statistics: function from output and labels of a batch to an array that is added up over batches, or put in a row.
        finish: function from that to the score.
        values: function from output and labels to one value for each sample or decision, of which the score is the mean; None
            where it is no mean.
        whole: whether `finish` takes the statistics of all batches in a row, and not their sum.
        higher: whether a higher score is better.
    """

    name: str
    statistics: Function
    finish: Callable[[Array], float]
    values: Function | None = None
    whole: bool = False
    higher: bool = True


@dataclass
class Tally:
    """Statistics of a model's answers, batch by batch, and the score that they make.

    Attributes:
        metric: the metric.
        parts: its statistics of each batch.
    """

    metric: Metric
    parts: list[Array] = field(default_factory=list)

    def add(self, output: Array, label: Array) -> None:
        """Takes in a batch."""
        self.parts.append(self.metric.statistics(output, label))

    @property
    def score(self) -> float | None:
        """The score; None before the first batch."""
        return self._of(self.parts) if self.parts else None

    def without_each(self) -> Array:
        """The scores without each of the batches in turn (for a jackknife, Efron and Stein 1981): [batches]."""
        total = None if self.metric.whole else np.sum(self.parts, axis=0)
        if total is not None:
            return np.array([self.metric.finish(total - part) for part in self.parts])
        return np.array([self._of(self.parts[:i] + self.parts[i + 1 :]) for i in range(len(self.parts))])

    def _of(self, parts: list[Array]) -> float:
        return self.metric.finish(np.concatenate(parts) if self.metric.whole else np.sum(parts, axis=0))


_Values = Callable[[Array, Array, Decisions], Array]
_MEANS: dict[str, _Values] = {
    "accuracy": samples.accuracy,
    "binary_accuracy": samples.binary_accuracy,
    "mse": samples.mse,
    "psnr": samples.psnr,
    "ssim": samples.ssim,
}
_SUMS: dict[str, tuple[_Values, Callable[[Array], float]]] = {
    "f1": (sums.overlaps, sums.f1),
    "iou": (sums.overlaps, sums.iou),
    "perplexity": (sums.surprise, sums.perplexity),
    "pearson": (sums.moments, sums.pearson),
    "wer": (sums.word_errors, sums.rate),
    "map": (sums.ranked, sums.average_precision),
}
#: `top1`, `top5`, ...: the label is among so many classes of the largest scores.
TOP = re.compile(r"top([1-9]\d*)")
_LOWER, _WHOLE = frozenset({"mse", "perplexity", "wer"}), frozenset({"map"})
#: Names of the metrics, for help and messages.
NAMES = ("accuracy", "topK", *[name for name in (*_MEANS, *_SUMS) if name != "accuracy"])


def named(metric: str | Function | Metric, decisions: Decisions | None = None) -> Metric:
    """A metric by its name, or the user's function; those with a name judge what the model decides.

    The user's function, which `package.module:function` names too, is guarded: if it raises, or returns something other than
    a finite number for each sample, that is an InputError.

    Raises:
        InputError: no metric has this name, or it is `topK` of a model with no more classes.
    """
    if isinstance(metric, Metric):
        return metric
    found = resolve(metric) if isinstance(metric, str) and ":" in metric else metric
    judged = Decisions() if decisions is None else decisions
    if callable(found):
        name = str(getattr(found, "__name__", "metric"))
        return _mean(name, _checked(name, found, judged))
    name = str(found)
    top = TOP.fullmatch(name)
    if top is not None:
        best = int(top[1])
        samples.check_top(best, judged.classes)
        return _mean(name, lambda output, label: samples.top(output, label, judged, best=best))
    if name in _MEANS:
        return _mean(name, lambda output, label: _MEANS[name](output, label, judged))
    if name not in _SUMS:
        raise InputError(
            f"metric {name!r}: is not one of {', '.join(NAMES)}; choose one of them, or name a function by "
            "package.module:function"
        )
    statistics, finish = _SUMS[name]
    return Metric(
        name,
        lambda output, label: statistics(output, label, judged),
        finish,
        whole=name in _WHOLE,
        higher=name not in _LOWER,
    )


def _mean(name: str, values: Function) -> Metric:
    def statistics(output: Array, label: Array) -> Array:
        found = np.asarray(values(output, label), np.float64)
        return np.array([found.sum(), found.size])

    return Metric(name, statistics, _ratio, values, higher=name not in _LOWER)


def _ratio(total: Array) -> float:
    return float(total[0] / total[1]) if total[1] else 0.0


def _checked(name: str, metric: Function, decisions: Decisions) -> Function:
    """The user's metric, whose values are numbers: one for each sample, or for each of its decisions."""

    def score(output: Array, label: Array) -> Array:
        with guarded(f"metric {name!r}: fails", "fix the function"):
            values = np.asarray(metric(output, label))
        if values.dtype.kind not in "biuf":
            raise InputError(f"metric {name!r}: returns {values.dtype} values; return one number per sample")
        if not (np.abs(values) <= np.finfo(np.float32).max).all():  # those of all samples are added up
            raise InputError(
                f"metric {name!r}: returns NaN, infinity or a number beyond float32; return one finite number per sample"
            )
        rows = output.shape[decisions.samples or 0] if output.ndim else 1
        counts = {rows, len(label) if np.ndim(label) else 1}  # of a detector's boxes, labels alone tell the samples
        whole = decisions.ignored is not None or any(_is_multiple(values.size, count) for count in counts)
        if not whole or values.size > max(rows, np.size(label)):  # as where [N] == [N, 1] gives [N, N]
            raise InputError(
                f"metric {name!r}: returns {values.size} numbers for {rows} samples; return one per sample"
            )
        return values

    return score


def _is_multiple(size: int, count: int) -> bool:
    return size % count == 0 < size if count else size == 0
