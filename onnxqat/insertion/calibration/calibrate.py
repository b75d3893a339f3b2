"""Ranges of activations from a stream of batches of any length, in memory that does not grow with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.data.samples import Samples
from onnxqat.distributed import Workers
from onnxqat.errors import InputError
from onnxqat.estimators.histogram import Floats, Histogram
from onnxqat.estimators.table import ESTIMATORS, Codes, Estimate, Seen
from onnxqat.graph.naming import label
from onnxqat.graph.nesting import captured_values
from onnxqat.insertion.calibration.moments import Noted
from onnxqat.insertion.fills import without_fills
from onnxqat.runtime.parted import Parted
from onnxqat.runtime.splitting import Arrays, splitting_into

log = logging.getLogger(__name__)

#: Values that a message names at most.
_NAMED = 5


@dataclass(frozen=True)
class Observed:
    """Value to observe during calibration.

    Attributes:
        value: the value.
        axis: channel axis; None as a whole.
        estimate: estimator of its range.
    """

    value: ir.Value
    axis: int | None
    estimate: Estimate


@dataclass
class Observer:
    """Streaming statistics of one value, per channel (C rows) or of the whole tensor (one row).

    Attributes:
        axis: channel axis; None per tensor.
        estimate: how the range is found; only what it needs is kept.
        low, high: smallest and largest value so far, [C].
        sums: over samples (first axis), of what the estimator averages, [K, C].
        samples: how many samples.
        histogram: counts of values.
    """

    axis: int | None
    estimate: Estimate
    low: Floats = field(default_factory=lambda: np.zeros(0))
    high: Floats = field(default_factory=lambda: np.zeros(0))
    sums: Floats = field(default_factory=lambda: np.zeros(()))
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
        self.low = np.minimum(self.low, lows.min(axis=0))
        self.high = np.maximum(self.high, highs.max(axis=0))
        self.samples += len(lows)
        estimator = ESTIMATORS[self.estimate.type]
        if estimator.averaged is not None:
            self.sums = self.sums + estimator.averaged(per_sample, self.estimate).sum(axis=1, dtype=np.float64)
        if estimator.counted is not None:
            counted = estimator.counted(np.moveaxis(per_sample, 1, 0).reshape(len(self.low), -1))
            self.histogram = Histogram.of(counted) if self.histogram is None else self.histogram.add(counted)

    def merge(self, other: Observer) -> None:
        """Takes in what another observer of the same value has seen."""
        if other.samples == 0:
            return
        if self.samples == 0:
            self.low, self.high = other.low, other.high
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.sums = self.sums + other.sums
        self.samples += other.samples
        if self.histogram is None or other.histogram is None:
            self.histogram = self.histogram or other.histogram
        else:
            self.histogram = self.histogram.merge(other.histogram)

    def _channels(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[samples, C, elements]."""
        if self.axis is None:
            return x.reshape(len(x), 1, -1)
        return np.moveaxis(x, self.axis, 1).reshape(len(x), x.shape[self.axis], -1)

    def range(self, levels: int, *, symmetric: bool) -> tuple[Floats, Floats]:
        """Low and high of the range to represent with that many levels, [] per tensor or [C]."""
        seen = Seen(self.low, self.high, self.sums / self.samples, self.histogram, self.axis is not None)
        low, high = ESTIMATORS[self.estimate.type].of_stream(seen, self.estimate, Codes(levels, symmetric))
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        return (low[0], high[0]) if self.axis is None else (low, high)


def calibrate(
    model: ir.Model,
    wanted: Iterable[Observed],
    batches: Iterable[Batch],
    workers: Workers | None = None,
    samples: Samples | None = None,
    noted: Noted | None = None,
    *,
    progress: Callable[[Iterable[Batch], str], Iterable[Batch]],
) -> dict[Observed, Observer]:
    """Runs the float model over the batches, until all that is wanted has its samples, and observes the values.

    Of several processes each runs its part of the batches, and all return what all have observed; `noted` is each one's own.

    Raises:
        InputError: no batch came, a value was not finite, or it was empty in all batches.
    """
    wanted = list(wanted)
    given = {one: _unit(one) for one in wanted if one.estimate.samples == 0}
    if given:
        log.warning("calibration: skipped for %d values; training or a checkpoint must set their ranges", len(given))
    observers = {one: Observer(one.axis, one.estimate) for one in wanted if one not in given}
    if not observers and noted is None:
        return given
    values = list(dict.fromkeys(one.value for one in observers))
    outputs = list(dict.fromkeys([*values, *(noted.values if noted else ())]))
    count = seen = 0
    workers, samples = workers or Workers(), samples or Samples.of(model)
    part = with_outputs(model, outputs)
    axes = {name: axis for name, axis in samples.inputs.items() if axis is not None}
    run = Parted(part, [str(value.name) for value in outputs], splitting_into(part, axes), workers.threads(0))
    for batch in progress(batches, "calibrate"):
        begin = seen
        for inputs, computed in run.parts(batch) if workers.takes(count) else ():
            arrays = {value: without_fills(value, computed[str(value.name)]) for value in values}
            rows = samples.rows(inputs, run.inputs)
            _observe(observers, arrays, rows, begin, count)
            if noted:
                _note(noted, inputs, computed, rows, begin, run, samples)
            begin += rows
        count, seen = count + 1, seen + samples.rows(batch, run.inputs)
        enough = [one.estimate.samples for one in observers] + ([noted.samples] if noted else [])
        if all(limit is not None and seen >= limit for limit in enough):
            break
    if count == 0:
        raise InputError("calibration: no batches came; give at least one")
    log.info("calibrated %d values on %d batches", len(values), count)
    found = merged(observers, workers)
    _check_seen(found)
    return found | given


def _observe(
    observers: Mapping[Observed, Observer],
    arrays: Mapping[ir.Value, NDArray[np.float32]],
    rows: int,
    seen: int,
    number: int,
) -> None:
    """Takes in what was computed for `rows` samples of a batch of that number, after `seen` others."""
    for value, array in arrays.items():
        if not np.isfinite(array).all():
            raise _not_finite(value, array, number)
    for one, observer in observers.items():
        observer.observe(_counting(arrays[one.value], rows, one.estimate.samples, seen))


def _note(
    noted: Noted,
    inputs: Arrays,
    computed: Arrays,
    rows: int,
    seen: int,
    run: Parted,
    samples: Samples,
) -> None:
    """Notes a batch of `rows` samples after `seen` others, or what is wanted of it."""
    left = noted.samples - seen
    if 0 < left < rows:
        part = samples.first(inputs, run.inputs, left)
        with suppress(InputError):  # a batch of fixed size, or samples that depend on each other
            inputs, computed = part, run(part)
    if left > 0:
        noted.take(inputs, computed)


def _unit(one: Observed) -> Observer:
    """Observer of a value that no sample is read for: its range is -1 to 1, as NNCF leaves it."""
    observer = Observer(one.axis, Estimate())
    size = 1 if one.axis is None or one.value.shape is None else one.value.shape[one.axis]
    assert isinstance(size, int)  # only such an axis is one of channels
    observer.observe(np.repeat(np.array([[-1], [1]], np.float32), size, axis=1))
    return observer


def _not_finite(value: ir.Value, array: NDArray[np.float32], number: int) -> InputError:
    if np.isnan(array).any():
        fact, remedy = "NaN", "check the model and the data"
    else:
        fact = "infinite"
        remedy = "bound it in the model, by a Clip or a Max, or leave the nodes that read it in float (`ignore`)"
    node = value.producer()
    what = f"value {value.name!r}" + ("" if node is None else f", the result of {label(node)},")
    return InputError(f"calibration: {what} is {fact} on batch {number}; {remedy}")


def _check_seen(observers: Mapping[Observed, Observer]) -> None:
    """Refuses values that were empty, or all of them 0, throughout, and warns of single ones that were 0."""
    for one, observer in observers.items():
        if observer.samples == 0:
            raise InputError(
                f"calibration: value {one.value.name!r} was empty in all batches; add batches in which it is not"
            )
    silent = [repr(str(one.value.name)) for one, seen in observers.items() if not (seen.low.any() or seen.high.any())]
    more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
    names = ", ".join(silent[:_NAMED]) + more
    if silent and len(silent) == len(observers):
        raise InputError(f"calibration: only zeros in {names}; give data of the kind that the model is for")
    if silent:
        log.warning("calibration: only zeros in %s, so that the range is a guess; give data that reaches it", names)


def _counting(array: NDArray[np.float32], rows: int, wanted: int | None, seen: int) -> NDArray[np.float32]:
    """Returns what counts of a batch of `rows` samples after `seen` others: a part only if axis 0 counts samples."""
    left = rows if wanted is None else min(max(wanted - seen, 0), rows)
    if not left:
        return array.reshape(-1)[:0]
    return array[:left] if array.ndim and len(array) == rows else array


def merged(observers: dict[Observed, Observer], workers: Workers) -> dict[Observed, Observer]:
    """Merges the observations of all processes."""
    if workers.size == 1:
        return observers
    found = {one: Observer(one.axis, one.estimate) for one in observers}
    for theirs in _gathered(observers, workers):
        for one, observer in theirs.items():
            found[one].merge(observer)
    return found


def _gathered(observers: dict[Observed, Observer], workers: Workers) -> list[dict[Observed, Observer]]:
    """The observers of all processes, by rank."""
    mine = {
        f"{number}/{name}": array for number, o in enumerate(observers.values()) for name, array in _arrays(o).items()
    }
    return [
        {
            one: _observer(one, {name: theirs[key] for name in _ARRAYS if (key := f"{number}/{name}") in theirs})
            for number, one in enumerate(observers)
        }
        for theirs in workers.gather(mine)
    ]


_ARRAYS = ("low", "high", "sums", "samples", "exponent", "first", "counts")


def _arrays(observer: Observer) -> dict[str, NDArray[Any]]:
    arrays = {
        "low": observer.low,
        "high": observer.high,
        "sums": observer.sums,
        "samples": np.array([observer.samples]),
    }
    if observer.histogram is not None:
        arrays |= {name: getattr(observer.histogram, name) for name in ("exponent", "first", "counts")}
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _observer(one: Observed, arrays: Mapping[str, NDArray[Any]]) -> Observer:
    """The inverse of `_arrays`."""
    histogram = Histogram(arrays["exponent"], arrays["first"], arrays["counts"]) if "counts" in arrays else None
    seen = arrays["low"], arrays["high"], arrays["sums"], int(arrays["samples"][0])
    return Observer(one.axis, one.estimate, *seen, histogram)


def with_outputs(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """The part of the model that computes the values, as its outputs: a shallow view, the graph itself is left as it is.

    No more than that part: ONNX Runtime 1.19 may fuse a value away that is an output and that nodes behind it read.
    """
    graph = model.graph
    nodes, needed = [], set(values)
    for node in reversed(graph):
        if needed.isdisjoint(node.outputs):
            continue
        nodes.append(node)
        needed.update(value for value in (*node.inputs, *captured_values(node)) if value is not None)
    view = ir.GraphView(
        graph.inputs,
        values,
        nodes=nodes[::-1],
        initializers=[value for value in graph.initializers.values() if value in needed],
        opset_imports=graph.opset_imports,
        name=graph.name,
    )
    return ir.Model(view, ir_version=model.ir_version)  # type: ignore[arg-type]
