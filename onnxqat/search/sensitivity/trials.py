"""Sensitivity: what quantizing each value alone costs, measured at the model's output."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.config import Config
from onnxqat.data import sources
from onnxqat.data.labels import Labelling
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.without import without_quantizers
from onnxqat.insertion import insert
from onnxqat.metrics.table import Function, Metric, Tally, named
from onnxqat.runtime import Inference
from onnxqat.runtime.toggles import readers
from onnxqat.search.layers.values import EXACT, Noise
from onnxqat.search.sensitivity import Cost, Sensitivity, check_widths
from onnxqat.search.sensitivity.pieces import pieces
from onnxqat.targets import TARGETS
from onnxqat.terminal.progress import duration, track
from onnxqat.terminal.quiet import quiet
from onnxqat.verification.rows import in_parts
from onnxqat.verification.run import decisions_of

log = logging.getLogger(__name__)

Array = NDArray[Any]
LABEL = "label"
#: Samples in one run of the model, and samples that ranges come from where the configuration does not say.
ROWS, CALIBRATED = 32, 256
#: Values after which the time of the others is told; the first sets up more than it computes.
TIMED = 3


def sensitivity(
    model: io.ModelLike,
    data: str | Path | sources.Source | sources.Batches,
    config: Config | None = None,
    *,
    widths: Sequence[int] = (8, 4, 2),
    metric: str | Function | Metric | None = None,
    samples: int = 64,
    calibration: str | Path | sources.Source | sources.Batches | None = None,
    transform: sources.Transform | None = None,
) -> Sensitivity:
    """Measures what quantizing each weight and each activation alone costs, all else in float.

    For each value and width the model runs on the samples once, from the piece that holds the value on (see `pieces`); after
    the first three the time that all would take from there is logged, which is a bound.

    Args:
        model: the float model.
        data: batches that it is measured on; labels are needed only for a metric.
        config: settings of quantization, the widths aside; None: `Config()`.
        widths: widths to measure, besides those of the configuration; of activations 8 alone where they feed no weighted layer
            or the target has no other, and of fp8 its own.
        metric: metric of the first output that is measured beside its signal over noise, as for `verify`; None: none.
        samples: samples to measure on.
        calibration: data that ranges come from; None: `data`.
        transform: turns an item of the loader into a batch.

    Example:
        ```python
        found = onnxqat.sensitivity("model.onnx", "train.npz", widths=[8, 4])
        rich.print(found)
        ```

    Raises:
        InputError: model, data or configuration is wrong.
    """
    config = config or Config()
    check_widths(widths)
    if samples < 1:
        raise InputError(f"samples is {samples}; it must be 1 or more")
    codes = {config.weight_type, config.activation_type}
    asked = (
        [8] if "fp8" in codes else sorted({*widths, config.weight_bits, min(config.activation_bits, 8)}, reverse=True)
    )
    source = sources.read(data) if isinstance(data, str | Path) else data
    ranges = source if calibration is None else calibration
    subject: _Subject | None = None
    costs: dict[tuple[str, int], Cost] = {}
    for number, bits in enumerate(asked):
        with quiet("onnxqat.insertion"):
            quantized = io.load(insert(model, ranges, _uniform(config, bits), transform=transform))
        if subject is None:
            subject = _Subject.of(quantized, source, metric, samples, transform)
        known, started = set(costs), time.perf_counter()
        for cost in subject.costs(quantized, known):
            costs[cost.value, cost.bits] = cost
            if number == 0 and len(costs) == TIMED:
                _foretell(len(list(readers(quantized))), asked, (time.perf_counter() - started) / TIMED)
    assert subject is not None
    order = {value: number for number, value in enumerate(dict.fromkeys(value for value, _ in costs))}
    ranked = sorted(costs.values(), key=lambda cost: (order[cost.value], -cost.bits))
    return Sensitivity(subject.rows, config, subject.metric, subject.score, tuple(ranked))


def _foretell(values: int, widths: Sequence[int], seconds: float) -> None:
    """Says how long all takes at most, from the time of one of the first values, behind which the whole model runs."""
    about, bits = duration(seconds * values * len(widths)), ", ".join(map(str, widths))
    log.info("sensitivity: %d values at %s bits, at most about %s", values, bits, about)


def _uniform(config: Config, bits: int) -> Config:
    """The settings with this width wherever the target has it, and nothing that changes weights for it.

    Weights have blocks where these take the width, and activations 8 bits where the target does not.
    """
    blocks: dict[str, Any] = {} if bits == 4 else {"weight_block_size": 0}
    ranges = config.activation_range
    brief = ranges if ranges.samples is not None else ranges.model_copy(update={"samples": CALIBRATED})
    widths: dict[str, Any] = {
        "activation_range": brief,
        "weight_bits": bits,
        "activation_bits": bits if bits in TARGETS[config.target].widths.taken else 8,
        "first_last_bits": None,
        **blocks,
    }
    free = dict.fromkeys(("weight_bits", "activation_bits", *blocks))
    overrides = [one.model_copy(update=free) for one in config.overrides]
    return Config(
        **{**dict(config), **widths, "output_correction": "none", "overrides": tuple(overrides), "sixteen": None}
    )


@dataclass(frozen=True)
class _Subject:
    """Samples, and what the float model makes of them.

    Attributes:
        parts: inputs with labels, a few samples at a time.
        judged: metric of an output and labels; None: none.
        metric: its name.
        score: the float model's.
        rows: samples.
    """

    parts: list[dict[str, Array]]
    judged: Metric | None
    metric: str | None
    score: float | None
    rows: int

    @classmethod
    def of(
        cls,
        quantized: ir.Model,
        data: Any,
        metric: str | Function | Metric | None,
        samples: int,
        transform: sources.Transform | None,
    ) -> _Subject:
        batches = sources.batches(data, quantized, needs_labels=metric is not None, transform=transform)
        names = {str(value.name) for value in quantized.graph.inputs} | ({LABEL} if metric is not None else set())
        rows, parts = 0, []
        known = batches.signature.samples
        for part in _limited(({n: a for n, a in batch.items() if n in names} for batch in batches), quantized, samples):
            parts.append(part)
            rows += known.rows(part, list(part))
        if metric is None:
            return cls(parts, None, None, None, rows)
        judged, run = named(metric, decisions_of(quantized, Labelling())), Inference(without_quantizers(quantized))
        score = _score(judged, [next(iter(run(part).values())) for part in parts], parts)
        return cls(parts, judged, judged.name, score, rows)

    def costs(self, quantized: ir.Model, known: set[tuple[str, int]]) -> Iterator[Cost]:
        """Costs of the quantizers of a model, but for those that are known."""
        found = {str(q.source.name): (q, names) for q, names in readers(quantized)}
        wanted = {name for name, (quantizer, _) in found.items() if (name, quantizer.bits) not in known}
        progress = track(range(len(wanted)), "sensitivity")
        for _, (name, expected, outputs) in zip(progress, self._outputs(quantized, wanted), strict=False):
            score = None if self.judged is None else _score(self.judged, [each[0] for each in outputs], self.parts)
            snr = _least(expected, outputs)
            quantizer, nodes = found[name]
            yield Cost(name, nodes, "weights" if quantizer.is_weight else "activations", quantizer.bits, snr, score)

    def _outputs(
        self, quantized: ir.Model, wanted: Container[str]
    ) -> Iterator[tuple[str, Sequence[Sequence[Array]], Sequence[Sequence[Array]]]]:
        """Wanted values, with the model's outputs in float and with each alone quantized."""
        for piece in pieces(quantized, self.parts):
            expected = piece.outputs()
            yield from ((name, expected, piece.outputs(name)) for name in piece.names if name in wanted)


def _least(expected: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> float:
    """The least signal over noise of the outputs, of those of numbers that are not whole where there are any."""
    floats = [number for number, array in enumerate(expected[0]) if getattr(array, "dtype", np.dtype(int)).kind == "f"]
    noises = {number: Noise() for number in floats or [0]}
    for expected_part, found_part in zip(expected, found, strict=True):
        for number, noise in noises.items():
            noise.add(expected_part[number], found_part[number])
    known = [noise.decibels for noise in noises.values() if noise.decibels is not None]
    return min(known, default=EXACT)


def _limited(batches: Iterator[dict[str, Array]], model: ir.Model, samples: int) -> Iterator[dict[str, Array]]:
    """The first so many samples, a few at a time."""
    read = 0
    for batch in batches:
        label = batch.pop(LABEL, None)
        start = 0
        for part in in_parts(batch, model, ROWS):
            count = len(next(iter(part.values())))
            yield part if label is None else {**part, LABEL: label[start : start + count]}
            start += count
            read += count
            if read >= samples:
                return


def _score(metric: Metric, outputs: Sequence[Array], parts: Sequence[dict[str, Array]]) -> float | None:
    tally = Tally(metric)
    for output, part in zip(outputs, parts, strict=True):
        tally.add(output, part[LABEL])
    return tally.score
