"""Detects a training that makes the model worse: a quantized model begins near its best, unlike one from scratch."""

from __future__ import annotations

import logging
import math
from collections import deque

log = logging.getLogger(__name__)

#: Losses that the running mean has seen before it is judged.
PATIENCE = 20
#: Weight of a new loss in the running mean.
SHARE = 0.05
#: Rise of the mean of the logarithms that counts: at least the first, and the second times the scatter of single losses.
MARGIN, DEVIATIONS = math.log(1.1), 4.0
#: Losses in which the latest fall is measured, half against half.
LATEST = 10
#: A loss that falls so fast that it is back where it began within so many steps is left alone: optimizers may need a few steps.
WAY_BACK = 30
#: Mean of |a - b| for two normal numbers, in standard deviations of one.
_DIFFERENCE = 2 / math.sqrt(math.pi)


class LossWatch:
    """Compares the exponential running mean of the loss to the loss of the first step, and warns once where it has risen.

    Only the first loss is that of the model as it was: too large a rate ruins a model in the first steps. As it is a single
    number, what counts as a rise is measured by how much losses scatter from step to step. Logarithms are compared where losses
    are positive, since losses scatter by a share of what they are. A loss that has risen, but is on its way back, is waited for.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._seen = 0
        self._last = self._mean = self._scatter = 0.0
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._said = False

    def saw(self, loss: float, lr: float) -> None:
        """Takes in the loss of a step; `lr` is the learning rate that the user has chosen."""
        if self._first is None:
            self._first = loss
            return
        change = _change(self._first, loss)
        self._seen += 1
        share = max(1 / self._seen, SHARE)
        self._mean += share * (change - self._mean)
        self._scatter += share * (abs(change - self._last) / _DIFFERENCE - self._scatter)
        self._last = change
        self._latest.append(change)
        if self._has_risen() and not self._comes_back() and not self._said:
            self._said = True
            log.warning(
                "the loss has risen from %.4g in the first step to %.4g: training makes the model worse; "
                "lower the learning rate, now %.2g, to a third or a tenth",
                self._first,
                loss,
                lr,
            )

    def _has_risen(self) -> bool:
        return self._seen >= PATIENCE and self._mean > max(MARGIN, DEVIATIONS * self._scatter)

    def _comes_back(self) -> bool:
        half = LATEST // 2
        before, now = (sum(part) / half for part in (list(self._latest)[:half], list(self._latest)[half:]))
        return now < max((before - now) / half * WAY_BACK, 0.0)


def _change(first: float, loss: float) -> float:
    """Returns how far a loss is above the first one: the logarithm of the ratio, where both are positive."""
    if first > 0:
        return math.log(max(loss / first, 1e-6))
    return (loss - first) / (abs(first) or 1.0)
