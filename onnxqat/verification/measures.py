"""Measure of each metric: in what a drop of it is given, how much is allowed, how a score is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxqat.metrics.table import TOP

#: Measure where there are no labels: the share of answers that are those of the float model.
AGREEMENT = "agreement"
#: Keeps a relative drop finite where there is nothing to be relative to.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Measure:
    """Unit and bound of a drop, which is positive if the deployed model is worse.

    Attributes:
        unit: as messages write it behind a number.
        allowed: the largest drop where the user names none; None: any.
        drop: from float score, deployed score and the score of a constant answer.
    """

    unit: str
    allowed: float | None
    drop: Callable[[Any, Any, float], Any]


def _points(before: Any, after: Any, constant: float) -> Any:
    return 100 * (before - after)


def _difference(before: Any, after: Any, constant: float) -> Any:
    return before - after


def _share_of_loss(before: Any, after: Any, constant: float) -> Any:
    """In percent of the float model's loss, or of a tenth of a constant answer's where that is more.

    A model that fits its labels exactly has a loss of 0, which any quantization multiplies.
    """
    base = max(float(np.mean(before)), constant / 10, TINY)
    return 100 * (after - before) / base


def _growth(before: Any, after: Any, constant: float) -> Any:
    return 100 * (after - before)


def _share(before: Any, after: Any, constant: float) -> Any:
    """In percent of the float model's score."""
    return 100 * (after - before) / max(float(np.mean(before)), TINY)


_SHARE_OF_ONE = Measure("points", 1.0, _points)
MEASURES = {
    **dict.fromkeys(("accuracy", "binary_accuracy", "f1", "iou", "map"), _SHARE_OF_ONE),
    "psnr": Measure("dB", 0.3, _difference),
    "mse": Measure("%", 5.0, _share_of_loss),
    "perplexity": Measure("%", 5.0, _share),
    "wer": Measure("points", 1.0, _growth),
    "ssim": Measure("", 0.01, _difference),
    "pearson": Measure("", 0.01, _difference),
    AGREEMENT: Measure("points", 1.0, _points),
}
#: The user's own metric: higher is better, in its own unit.
OTHER = Measure("", None, _difference)


def measure(metric: str) -> Measure:
    """Returns the measure by which a metric is judged."""
    return MEASURES.get(metric, _SHARE_OF_ONE if TOP.fullmatch(metric) else OTHER)


def shown(metric: str, score: float | None) -> str:
    """A score as tables and messages write it; nothing for None."""
    if score is None:
        return ""
    return f"{100 * score:.2f} %" if measure(metric).unit == "points" else f"{score:.4g}"
