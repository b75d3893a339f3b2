"""Runs two models on the same batches and says how far apart their outputs are, in the output's own steps.

Outputs whose size depends on the data (boxes that were kept, places that are not zero) may differ in shape. They are compared
where their shapes agree, and by how many of their entries, whole rows along the axis of varying size, both models give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph import qdq
from onnxqat.graph.movement import quantizer_above
from onnxqat.metrics.table import Metric, Tally
from onnxqat.verification.entries import Sizes
from onnxqat.verification.host import Arrays, Host
from onnxqat.verification.paired import Paired, agreeing

LABEL = "label"
#: Sees the inputs of a batch, its labels, and the outputs of the Q/DQ model and of the deployed one.
Watch = Callable[[Arrays, NDArray[Any] | None, Arrays, Arrays], None]


@dataclass(frozen=True)
class OutputDifference:
    """Largest difference of one output between the two models.

    Attributes:
        output: its name.
        largest: largest absolute difference over all samples and elements; where shapes differ, over the batches in which
            they do not.
        step: size of one step of this output, in its own unit (see `step_from`).
        step_from: "quantizer": the scale of the quantizer that the output comes out of (the largest, per channel);
            "range": 1/255 of the Q/DQ model's largest minus smallest value of this output on the data; "integer": 1.
        batches: how many batches `largest` is over.
        sizes: numbers of entries, for an output whose shape differs between the models; None otherwise.
        masked: number of elements that only one of the models masks by infinity; `largest` leaves them out.
    """

    output: str
    largest: float
    step: float
    step_from: Literal["quantizer", "range", "integer"]
    batches: int
    sizes: Sizes | None = None
    masked: int = 0

    @property
    def steps(self) -> float:
        """The largest difference in steps."""
        return self.largest / self.step


@dataclass
class Comparison:
    """Sums over the batches of a comparison.

    Attributes:
        samples: rows seen.
        batches: batches seen.
        scores: statistics of the metric per model.
        agreeing: predictions in which the largest score is at the same place.
        predictions: predictions seen; 0 where the first output has no class scores.
        largest: largest difference of each output, where the shapes are equal.
        low: smallest value of each output of the Q/DQ model.
        high: largest value likewise.
        first: inputs of the first batch.
        worst: for each output, the inputs of the batch with the largest difference, and its row; None if it has none.
        sizes: numbers of entries of the models, for each output whose shape differs between them.
        masked: number of elements of each output that only one of the models masks by infinity.
    """

    samples: int = 0
    batches: int = 0
    scores: dict[str, Tally] = field(default_factory=dict)
    agreeing: int = 0
    predictions: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    first: Arrays = field(default_factory=dict)
    worst: dict[str, tuple[Arrays, int | None]] = field(default_factory=dict)
    sizes: dict[str, Sizes] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)

    def score(self, model: str) -> float | None:
        """The metric; None where the batches had no labels."""
        return self.scores[model].score if model in self.scores else None

    @property
    def agreement(self) -> float | None:
        """Share of predictions that are equal; None where there are none."""
        return self.agreeing / self.predictions if self.predictions else None


def compared(
    host: Host,
    batches: Iterable[Arrays],
    metric: Metric,
    decisions: Decisions,
    samples: Samples | None = None,
    paired: Paired | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Runs the models loaded as "trained" and "deployed" on all batches, and judges what they decide.

    With `paired`, the model loaded as "float" runs too, and is set against the deployed one.
    """
    result = Comparison()
    samples = samples or Samples()
    for batch in batches:
        inputs = {name: array for name, array in batch.items() if name != LABEL}
        trained, deployed = host.run("trained", inputs), host.run("deployed", inputs)
        if list(trained) != list(deployed):
            raise InputError(
                f"deployed model: its outputs are {list(deployed)}, the Q/DQ model's {list(trained)}; "
                "give a pair that belongs together"
            )
        result.first = result.first or inputs
        result.batches += 1
        result.samples += samples.rows(inputs, list(inputs))
        add_scores(result, {"trained": trained, "deployed": deployed}, batch.get(LABEL), metric)
        add_agreement(result, _first(trained), _first(deployed), decisions)
        _add_differences(result, inputs, trained, deployed, samples)
        if paired is not None:
            expected = _first(host.run("float", inputs))
            paired.add(inputs, expected, _first(deployed), batch.get(LABEL), samples.rows(inputs, list(inputs)))
        if watch is not None:
            watch(inputs, batch.get(LABEL), trained, deployed)
    return result


def scored(host: Host, batches: Iterable[Arrays], metric: Metric, model: str) -> float:
    """The metric over all batches, for one loaded model."""
    result = Comparison()
    for batch in batches:
        outputs = host.run(model, {name: array for name, array in batch.items() if name != LABEL})
        add_scores(result, {model: outputs}, batch[LABEL], metric)
    score = result.score(model)
    assert score is not None
    return score


def differences(result: Comparison, deployed: ir.Model) -> tuple[OutputDifference, ...]:
    """The largest difference of each output, with the step to measure it by."""
    quantizers = qdq.by_output(qdq.quantizers(deployed))
    found = []
    for value in deployed.graph.outputs:
        name = str(value.name)
        if name not in result.largest:
            continue
        quantizer = quantizer_above(value, quantizers)
        step_from: Literal["quantizer", "range", "integer"] = "range"
        step = (result.high.get(name, 0) - result.low.get(name, 0)) / 255 or 1.0
        if quantizer is not None:
            step, step_from = float(quantizer.scales.max()), "quantizer"
        elif value.dtype is not None and value.dtype.is_integer():
            step, step_from = 1.0, "integer"
        sizes = result.sizes.get(name)
        batches = result.batches - (0 if sizes is None else sizes.batches)
        masked = result.masked.get(name, 0)
        found.append(OutputDifference(name, result.largest[name], step, step_from, batches, sizes, masked))
    return tuple(found)


def add_scores(result: Comparison, outputs: dict[str, Arrays], label: NDArray[Any] | None, metric: Metric) -> None:
    """Adds the metric of a batch for each model, by its first output; nothing without labels."""
    if label is None:
        return
    for model, arrays in outputs.items():
        result.scores.setdefault(model, Tally(metric)).add(_first(arrays), label)


def add_agreement(result: Comparison, trained: NDArray[Any], deployed: NDArray[Any], decisions: Decisions) -> None:
    """Counts the predictions of a batch, and those in which two models' first outputs agree."""
    same = agreeing(trained, deployed, decisions)
    if same is not None:
        result.agreeing += int(same.sum())
        result.predictions += same.size


def _add_differences(result: Comparison, inputs: Arrays, trained: Arrays, deployed: Arrays, samples: Samples) -> None:
    for name, expected in trained.items():
        found = deployed[name]
        result.largest.setdefault(name, 0.0)
        if expected.shape != found.shape:
            result.sizes[name] = result.sizes.get(name, Sizes()) + Sizes.of(expected, found)
            result.worst.setdefault(name, (inputs, None))
        if expected.shape != found.shape or expected.size == 0:
            continue
        apart, masked = _apart(name, expected, found)
        result.masked[name] = result.masked.get(name, 0) + masked
        if name not in result.worst or apart.max() > result.largest[name]:
            result.worst[name] = inputs, _row(apart, samples.outputs.get(name, 0), samples.rows(inputs, list(inputs)))
            result.largest[name] = float(apart.max())
        finite = expected[np.isfinite(expected)]
        if finite.size:
            result.low[name] = min(float(finite.min()), result.low.get(name, np.inf))
            result.high[name] = max(float(finite.max()), result.high.get(name, -np.inf))


def _row(apart: NDArray[np.float64], axis: int | None, rows: int) -> int | None:
    """The sample with the largest difference, if the output holds one entry for each of the `rows` samples."""
    if axis is None or axis >= apart.ndim or apart.shape[axis] != rows:
        return None
    return int(np.unravel_index(apart.argmax(), apart.shape)[axis])


def _apart(name: str, expected: NDArray[Any], found: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Absolute differences, and how many elements only one model masks by infinity; what is masked differs by 0.

    Raises:
        InputError: there is a NaN, or infinities are in only one of the models, where masks would be in both.
    """
    infinite = np.isinf(expected) | np.isinf(found)
    undefined = bool(np.isnan(expected).any() or np.isnan(found).any())
    if undefined or np.isinf(expected).any() != np.isinf(found).any():
        what = "NaN" if undefined else "infinite"
        raise InputError(f"output {name!r}: is {what} in one of the two models; check how the model was trained")
    with np.errstate(invalid="ignore"):
        apart = np.where(infinite, 0.0, np.abs(expected.astype(np.float64) - found))
    return apart, int((infinite & (expected != found)).sum())


def _first(arrays: Arrays) -> NDArray[Any]:
    return next(iter(arrays.values()))
