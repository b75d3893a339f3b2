"""Ranges of activations from a stream of batches of any length, in memory that does not grow with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.batch import Batch
from onnxqat.config import RangeEstimator
from onnxqat.errors import InputError
from onnxqat.insert.ranges import Histogram, histogram_range
from onnxqat.runtime import Inference

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]


@dataclass
class Observer:
    """Streaming statistics of one value, per channel (C rows) or of the whole tensor (one row).

    Attributes:
        axis: channel axis; None per tensor.
        low, high: smallest and largest value so far, [C].
        low_sum, high_sum: sums over samples (first axis) of each sample's smallest and largest value, [C].
        samples: how many samples.
        histogram: counts of values; kept only where the estimator needs them.
    """

    axis: int | None
    keep_histogram: bool
    low: Floats = field(default_factory=lambda: np.zeros(0))
    high: Floats = field(default_factory=lambda: np.zeros(0))
    low_sum: Floats = field(default_factory=lambda: np.zeros(0))
    high_sum: Floats = field(default_factory=lambda: np.zeros(0))
    samples: int = 0
    histogram: Histogram | None = None

    def observe(self, x: NDArray[np.float32]) -> None:
        """Takes in one batch; its first axis counts samples."""
        if x.size == 0:
            return
        per_sample = x.reshape(1, -1, 1) if x.ndim == 0 else self._channels(x)
        lows, highs = per_sample.min(axis=2), per_sample.max(axis=2)
        if self.samples == 0:
            self.low, self.high = lows.min(axis=0), highs.max(axis=0)
            self.low_sum, self.high_sum = np.zeros_like(self.low), np.zeros_like(self.high)
        self.low = np.minimum(self.low, lows.min(axis=0))
        self.high = np.maximum(self.high, highs.max(axis=0))
        self.low_sum = self.low_sum + lows.sum(axis=0, dtype=np.float64)
        self.high_sum = self.high_sum + highs.sum(axis=0, dtype=np.float64)
        self.samples += len(lows)
        if self.keep_histogram:
            rows = np.moveaxis(per_sample, 1, 0).reshape(len(self.low), -1)
            self.histogram = Histogram.of(rows) if self.histogram is None else self.histogram.add(rows)

    def _channels(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[samples, C, elements]."""
        if self.axis is None:
            return x.reshape(len(x), 1, -1)
        return np.moveaxis(x, self.axis, 1).reshape(len(x), x.shape[self.axis], -1)

    def range(
        self, estimator: RangeEstimator, levels: int, *, symmetric: bool, percentile: float
    ) -> tuple[Floats, Floats]:
        """Low and high of the range to represent with that many levels, [] per tensor or [C]."""
        if estimator == "min_max":
            low, high = self.low, self.high
        elif estimator == "mean_min_max":
            low, high = self.low_sum / self.samples, self.high_sum / self.samples
        else:
            assert self.histogram is not None
            low, high = histogram_range(self.histogram, estimator, levels, symmetric=symmetric, percentile=percentile)
            # a bin's centre may lie beyond the values in it, and a Clip in front is absorbed only within its bounds
            low, high = np.maximum(low, np.minimum(self.low, 0)), np.minimum(high, np.maximum(self.high, 0))
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        return (low[0], high[0]) if self.axis is None else (low, high)


def calibrate(
    model: ir.Model,
    axes: Mapping[ir.Value, int | None],
    batches: Iterable[Batch],
    *,
    keep_histogram: bool,
    progress: Callable[[Iterable[Batch], str], Iterable[Batch]],
) -> dict[ir.Value, Observer]:
    """Runs the float model over the batches and observes the values, each along its channel axis (None: as a whole).

    Raises:
        InputError: no batch came, or a value was not finite.
    """
    observers = {value: Observer(axis, keep_histogram) for value, axis in axes.items()}
    names = [str(value.name) for value in observers]
    run = Inference(_with_outputs(model, list(observers)), names)
    count = 0
    for batch in progress(batches, "calibrate"):
        for (value, observer), array in zip(observers.items(), run(batch).values(), strict=True):
            if not np.isfinite(array).all():
                raise InputError(
                    f"calibration: value {value.name!r} is not finite on batch {count}; check the model and the data"
                )
            observer.observe(array)
        count += 1
    if count == 0:
        raise InputError("calibration: no batches came; give at least one")
    log.info("calibrated %d values on %d batches", len(names), count)
    return observers


def _with_outputs(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """The same model with the values as its outputs: a shallow view, the graph itself is left as it is."""
    graph = model.graph
    view = ir.GraphView(
        graph.inputs,
        values,
        nodes=list(graph),
        initializers=list(graph.initializers.values()),
        opset_imports=graph.opset_imports,
        name=graph.name,
    )
    return ir.Model(view, ir_version=model.ir_version)  # type: ignore[arg-type]
