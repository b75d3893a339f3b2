"""Task of a contestant, and what it measures; needs the standard library alone, so that every environment can read it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """One run: quantize a network, judge it, train it, judge it again.

    Attributes:
        kind: one of `process.KINDS`.
        net: name of the network.
        bits: width of weights and activations; the first and the last layer keep 8.
        seed: of the images and of their order.
        rate: largest learning rate; 0: no training.
        steps: number of training batches.
        settings: of the contestant.
    """

    kind: str
    net: str
    bits: int
    seed: int
    rate: float = 0.0
    steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """All of it, as text."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Judged:
    """What came of a stage.

    Attributes:
        test: share of the 10,000 test images that it gets right.
        validation: share of the 1,000 validation images.
        loss: mean cross entropy on these, by which rates are chosen.
        seconds: of processor time that it took, without judging; other work on the machine does not count.
        peak: of the memory of the process until then, in MB.
    """

    test: float
    validation: float
    loss: float
    seconds: float
    peak: float


class Clock:
    """Processor time since it was made, and the peak of memory."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def read(self) -> dict[str, float]:
        """`seconds` and `peak` of `Judged`."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": time.process_time() - self._start, "peak": peak}
