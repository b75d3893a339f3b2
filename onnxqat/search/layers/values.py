"""Figures of single values over a stream of batches: signal and noise, clipped shares, histograms on the codes of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import SMALLEST_FILL
from onnxqat.graph.constants import constant
from onnxqat.graph.qdq import Quantizer
from onnxqat.numerics import clipped, fake_quantize, spread
from onnxqat.search.layers import Grid

Array = NDArray[Any]

#: Decibels that stand for no noise at all.
EXACT = 200.0
#: Bins of a histogram, and elements of a batch that it counts.
BINS, ELEMENTS = 64, 2**16


@dataclass
class Noise:
    """Signal and noise of a value, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: Array, found: Array) -> None:
        """Adds a batch; what the data does not decide (infinities, fill values of masks) is left out."""
        if expected.shape != found.shape:
            return
        expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
        counts = (np.abs(expected) < SMALLEST_FILL) & (np.abs(found) < SMALLEST_FILL)
        self.signal += float(np.square(expected, where=counts, out=np.zeros_like(expected)).sum())
        self.noise += float(np.square(found - expected, where=counts, out=np.zeros_like(expected)).sum())

    @property
    def decibels(self) -> float | None:
        """Signal over noise; `EXACT` where there is no noise, None where there is no signal."""
        if not self.signal:
            return None
        return round(min(EXACT, 10 * float(np.log10(self.signal / self.noise))), 2) if self.noise else EXACT


@dataclass
class Seen:
    """Values of a quantizer's source on the codes of its grid.

    Attributes:
        quantizer: the quantizer.
    """

    quantizer: Quantizer
    noise: Noise = field(default_factory=Noise)
    beyond: int = 0
    count: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def edges(self) -> tuple[float, float]:
        """Ends of the histogram: a quarter of the codes beyond the lowest and the highest."""
        low, high = self.quantizer.qmin - 0.5, self.quantizer.qmax + 0.5
        return low - (high - low) / 4, high + (high - low) / 4

    def add(self, values: Array) -> Array:
        """Adds a batch; returns it as it is after quantization."""
        q = self.quantizer
        grid = (q.scales, q.zero_points, q.qmin, q.qmax, q.axis, q.block)
        quantized = fake_quantize(values, *grid)
        self.noise.add(values, quantized)
        finite = np.abs(values) < SMALLEST_FILL
        self.beyond += int((clipped(values, *grid) & finite).sum())
        self.count += int(finite.sum())
        scales, zeros = (spread(p, values.shape, q.axis, q.block) for p in (q.scales, q.zero_points))
        codes = (values / scales + zeros)[finite].reshape(-1)
        codes = codes[:: max(codes.size // ELEMENTS, 1)]
        low, high = self.edges
        self.counts += np.histogram(np.clip(codes, low, high), BINS, (low, high))[0]
        return quantized

    def grid(self, initial: Mapping[str, Array]) -> Grid:
        """The figures, with the drift from these scales."""
        q = self.quantizer
        before = initial.get(str(q.scale.name))
        drift = None if before is None else float(np.abs(q.scales / before.reshape(q.scales.shape) - 1).max())
        return Grid(
            value=str(q.source.name),
            bits=q.bits,
            codes=(q.qmin, q.qmax),
            symmetric=not q.zero_points.any(),
            granularity=q.granularity,
            scale=(float(q.scales.min()), float(q.scales.max())),
            clipped=self.beyond / self.count if self.count else None,
            snr=self.noise.decibels,
            drift=drift,
            edges=self.edges,
            counts=tuple(map(int, self.counts)) if self.count else (),
        )


def seen_weight(quantizer: Quantizer) -> Seen:
    """A weight on its grid; of one that is stored as codes only the grid."""
    seen, array = Seen(quantizer), constant(quantizer.source)
    if quantizer.quantize is not None and array is not None:
        seen.add(np.asarray(array, np.float32))
    return seen


def grouped(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Names in groups of at most so many bytes together, a larger one alone."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def scales_of(quantizers: Sequence[Quantizer]) -> dict[str, Array]:
    """The scales by name."""
    return {str(q.scale.name): np.asarray(q.scales) for q in quantizers}


def judged_value(node: ir.Node, sources: Mapping[ir.Value, Quantizer], reported: set[ir.Node]) -> ir.Value:
    """The value by which a node's output is judged: the first that is quantized, past nodes that only bend or move it."""
    value = next(value for value in node.outputs if value.name)  # an LSTM may leave out its first
    while value not in sources and not value.is_graph_output():
        users = [use.node for use in value.uses()]
        if len(users) != 1 or users[0] in reported or users[0].op_type == "QuantizeLinear":
            break
        value = users[0].outputs[0]
    return value
