"""Statistics of a model's quantizers: settings, fit of the ranges, drift through training."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table

from onnxqat.graph.constants import constant
from onnxqat.graph.io import opset
from onnxqat.graph.movement import quantizer_above
from onnxqat.graph.ops import Ops
from onnxqat.graph.qdq import Quantizer, by_output, quantizers
from onnxqat.numerics import along_axis, clipped
from onnxqat.terminal.plain import Terminal, cells
from onnxqat.training.running.program import Program
from onnxqat.training.running.values import as_value

Array = NDArray[Any]

#: Operators whose constant input 1 is a weight that runtimes have integer kernels for.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TEXT_WIDTH = 140


@dataclass(frozen=True)
class QuantizerStatistics:
    """Statistics of one quantizer.

    Attributes:
        value: name of the value that it quantizes.
        kind: "weight" if that value is constant, "activation" if it is computed.
        bits: width of the codes.
        codes: lowest and highest code.
        symmetric: whether 0.0 is the code 0.
        granularity: "per tensor", "per channel" or "per block".
        scale: smallest and largest scale over channels.
        scale_drift: largest relative change of a scale since the start, |s - s0| / s0.
        clipped: share of the values, 0 to 1, whose code lies outside `codes`; None for activations where no data was given.
        weight_drift: relative change of a weight since the start, ‖w - w0‖ / ‖w0‖; None for activations.
    """

    value: str
    kind: Literal["weight", "activation"]
    bits: int
    codes: tuple[int, int]
    symmetric: bool
    granularity: str
    scale: tuple[float, float]
    scale_drift: float
    clipped: float | None
    weight_drift: float | None

    @property
    def how(self) -> str:
        """The quantizer's spec in words."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.bits} bits, {self.codes[0]} … {self.codes[1]}, {symmetry}, {self.granularity}"


@dataclass(frozen=True)
class Statistics:
    """Result of `Trainer.statistics`; prints as tables.

    Attributes:
        step: optimizer steps done; None: not counted, in a loop that is not `Trainer`'s.
        layers: layers with constant weights (Conv, ConvTranspose, Gemm, MatMul).
        quantized_weights: those of them whose weight is quantized.
        quantized_inputs: those of them whose other input is quantized.
        rows: rows of data that the clipped shares of activations were counted on.
        quantizers: in order of execution.

    Example:
        ```python
        statistics = trainer.statistics(batches)
        print(max(statistics.activations, key=lambda quantizer: quantizer.clipped).value)
        ```
    """

    step: int | None
    layers: int
    quantized_weights: int
    quantized_inputs: int
    rows: int
    quantizers: tuple[QuantizerStatistics, ...]

    @property
    def weights(self) -> tuple[QuantizerStatistics, ...]:
        """The quantizers of weights."""
        return tuple(q for q in self.quantizers if q.kind == "weight")

    @property
    def activations(self) -> tuple[QuantizerStatistics, ...]:
        """The quantizers of activations."""
        return tuple(q for q in self.quantizers if q.kind == "activation")

    def to_dict(self) -> dict[str, Any]:
        """The statistics as plain dicts, lists, numbers and strings."""
        return asdict(self)

    def to_json(self) -> str:
        """The statistics as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        text = io.StringIO()
        Terminal(file=text, width=_TEXT_WIDTH).print(self)
        return text.getvalue().rstrip("\n")

    def __rich__(self) -> RenderableType:
        title = None if self.step is None else f"after {self.step} steps"
        summary = Table("", "quantizers", "how", title=title, title_justify="left")
        for (kind, how), count in Counter((q.kind, q.how) for q in self.quantizers).items():
            summary.add_row(kind, str(count), how)
        of = f"of {self.layers} layers with weights"
        caption = (
            f"{self.quantized_weights} {of} have quantized weights, {self.quantized_inputs} {of} a quantized input"
        )
        summary.caption, summary.caption_justify = caption, "left"
        table = Table("value", "kind", "scale", "scale drift", "clipped", "weight drift")
        for q in self.quantizers:
            span = f"{q.scale[0]:.3g}" if q.scale[0] == q.scale[1] else f"{q.scale[0]:.3g} … {q.scale[1]:.3g}"
            table.add_row(
                *cells(q.value, q.kind), span, f"{q.scale_drift:.2%}", _percent(q.clipped), _percent(q.weight_drift)
            )
        return Group(summary, table)


def statistics(
    initial: ir.Model, current: ir.Model, batches: Iterable[Mapping[str, Array]] = (), step: int | None = None
) -> Statistics:
    """Compares a Q/DQ model with what training made of it.

    Args:
        initial: the model as it was.
        current: the same graph with other parameters.
        batches: arrays by input name on which clipped activations are counted, each value over all of them.
        step: optimizer steps done in between; None: not counted.
    """
    before = _distinct(initial)
    found = [_statistics(old, new) for old, new in zip(before, _distinct(current), strict=True)]
    shares, rows = _clipped_activations(current, batches)
    counted = tuple(replace(q, clipped=shares[q.value]) if q.value in shares else q for q in found)
    return Statistics(step, *_layers(current), rows, counted)


def _statistics(before: Quantizer, after: Quantizer) -> QuantizerStatistics:
    scales, start = after.scales, before.scales
    weight = constant(after.source) if after.is_weight and after.quantize is not None else None
    granularity = "per tensor" if after.axis is None else "per block" if after.block else "per channel"
    share = drift = None
    if weight is not None:
        old = constant(before.source)
        assert old is not None
        drift = float(np.linalg.norm(weight - old) / max(float(np.linalg.norm(old)), float(np.finfo(np.float32).tiny)))
        codes = after.qmin, after.qmax
        share = float(clipped(weight, scales, after.zero_points, *codes, after.axis, after.block).mean())
    return QuantizerStatistics(
        value=str(after.source.name),
        kind="weight" if after.is_weight else "activation",
        bits=after.bits,
        codes=(after.qmin, after.qmax),
        symmetric=not after.zero_points.any(),
        granularity=granularity,
        scale=(float(scales.min()), float(scales.max())),
        scale_drift=float(np.abs(scales / start - 1).max()),
        clipped=share,
        weight_drift=drift,
    )


def _distinct(model: ir.Model) -> list[Quantizer]:
    """The quantizers, one for all DequantizeLinear nodes that read the same codes."""
    return list({quantizer.dequantize.inputs[0]: quantizer for quantizer in reversed(quantizers(model))}.values())[::-1]


def _layers(model: ir.Model) -> tuple[int, int, int]:
    """Weighted layers, those with a quantized weight, those with a quantized input, be it moved about in between."""
    outputs = by_output(quantizers(model))
    layers = weights = inputs = 0
    for node in model.graph:
        if node.op_type not in _WEIGHTED:
            continue
        behind = [quantizer_above(value, outputs) for value in node.inputs[:2]]
        if any(constant(value) is not None for value in node.inputs[:2]) or any(
            q is not None and q.is_weight for q in behind
        ):
            layers += 1
            weights += any(q is not None and q.is_weight for q in behind)
            inputs += any(q is not None and not q.is_weight for q in behind)
    return layers, weights, inputs


def _clipped_activations(model: ir.Model, batches: Iterable[Mapping[str, Array]]) -> tuple[dict[str, float], int]:
    """Share of clipped values by the quantized value's name, and how many rows were seen.

    The counting is part of the graph, right before each quantizer, so that no activation outlives its use.
    """
    counting = model.clone()
    names: list[str] = []
    outputs: list[ir.Value] = []
    for quantizer in _distinct(counting):
        if quantizer.is_weight or quantizer.quantize is None:
            continue
        op = Ops(opset(counting))
        outputs += [_count_clipped(op, quantizer), op.Size(quantizer.source)]
        names.append(str(quantizer.source.name))
        for number, node in enumerate(op.nodes):
            node.name = f"onnxqat_count_{len(names)}_{number}"
        counting.graph.insert_before(quantizer.quantize, op.nodes)
    for number, value in enumerate(outputs):
        value.name, value.type, value.shape = f"onnxqat_count_{number}", ir.TensorType(ir.DataType.INT64), ir.Shape([])
    counting.graph.outputs[:] = outputs
    totals, rows, program = np.zeros(len(outputs), np.int64), 0, None
    for batch in batches:
        program = program or Program(counting)
        counts = program({name: as_value(batch[name]) for name in program.inputs})
        totals += [int(value.numpy()) for value in counts.values()]
        rows += len(batch[program.inputs[0]])
    return {n: float(c / t) for n, c, t in zip(names, totals[::2], totals[1::2], strict=True) if t}, rows


def _count_clipped(op: Ops, quantizer: Quantizer) -> ir.Value:
    """Writes the number of values that fall outside the codes: `numerics.clipped` in ONNX."""
    rank = 0 if quantizer.axis is None or quantizer.source.shape is None else quantizer.source.shape.rank()
    scale, zero = (along_axis(a, rank, quantizer.axis) for a in (quantizer.scales, quantizer.zero_points))
    low, high = (_floats(op, bound - zero) for bound in (quantizer.qmin, quantizer.qmax))
    codes = op.Round(op.Div(quantizer.source, _floats(op, scale)))
    outside = op.Cast(op.Or(op.Less(codes, low), op.Greater(codes, high)), to=ir.DataType.INT64)
    return op.ReduceSum(outside, keepdims=0)


def _floats(op: Ops, array: Array) -> ir.Value:
    return op.Constant(value=ir.tensor(np.asarray(array, np.float32)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
