"""Contents of a model as tables: what is quantized and how, what stays in float and why, what can be trained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from rich.console import Group
from rich.table import Table

from onnxqat.autodiff.differentiate import blocked_text
from onnxqat.graph.naming import name_of
from onnxqat.graph.qdq import Quantizer, quantizers
from onnxqat.terminal.plain import cells
from onnxqat.training.health.trainability import obstacles, trainability

_COLUMNS = ("value", "kind", "bits", "codes", "zero point", "scale", "granularity")
#: Key of a node's metadata that says why it stays in float.
_WHY = "onnxqat.float"


@dataclass(frozen=True)
class Contents:
    """Contents of a model, for programs.

    Attributes:
        quantizers: value, kind, bits, codes and granularity of each quantizer.
        floats: nodes that `insert` left in float, and why.
        nodes: name and operator of each node.
    """

    quantizers: list[dict[str, Any]]
    floats: list[dict[str, str]]
    nodes: list[dict[str, str]]

    @classmethod
    def of(cls, model: ir.Model) -> Contents:
        """The contents of a model."""
        rows = [dict(zip(_COLUMNS, _row(quantizer), strict=True)) for quantizer in quantizers(model)]
        numbered = [{**row, "bits": int(row["bits"])} for row in rows]
        kept = [{"node": name_of(n), "operator": n.op_type, "why": n.metadata_props[_WHY]} for n in _floats(model)]
        return cls(numbered, kept, [{"node": name_of(node), "operator": node.op_type} for node in model.graph])

    def to_json(self) -> str:
        """The contents as JSON text."""
        return json.dumps(asdict(self), indent=2)


def quantization_table(model: ir.Model, *, scales: bool = True) -> Group:
    """One row per quantizer, with `scales` or without, then one per node that `insert` left in float, with the reason."""
    shown = [index for index, name in enumerate(_COLUMNS) if scales or name not in ("zero point", "scale")]
    table = Table(*(_COLUMNS[index] for index in shown), title="quantizers", title_justify="left")
    for quantizer in quantizers(model):
        row = _row(quantizer)
        table.add_row(*cells(*(row[index] for index in shown)))
    others = Table("node", "operator", "why in float", title="nodes in float", title_justify="left")
    for node in _floats(model):
        others.add_row(*cells(name_of(node), node.op_type, node.metadata_props[_WHY]))
    operators = Table("node", "operator", title="nodes", title_justify="left")
    if not table.row_count:
        for node in model.graph:
            operators.add_row(*cells(name_of(node), node.op_type))
    return Group(*(t for t in (table, others, operators) if t.row_count))


def trainability_table(model: ir.Model) -> Table:
    """One row per operator: how often it occurs, whether gradients pass it, and why or why not."""
    table = Table("operator", "count", "gradient", "why")
    for row in trainability(model):
        name = f"{row.domain}::{row.op_type}" if row.domain else row.op_type
        table.add_row(*cells(name, str(row.count), "yes" if row.differentiable else "no", row.reason))
    return table


def obstacles_line(model: ir.Model) -> str:
    """Names every node that keeps a weight from being trained, and what to do."""
    blocked = obstacles(model)
    return blocked_text(blocked) if blocked else "no node prevents training"


def _floats(model: ir.Model) -> list[ir.Node]:
    """Nodes that `insert` left in float and says why."""
    others = ("QuantizeLinear", "DequantizeLinear", "Constant")
    return [node for node in model.graph if node.op_type not in others and _WHY in node.metadata_props]


def _row(quantizer: Quantizer) -> tuple[str, ...]:
    scales, zero_points = quantizer.scales, quantizer.zero_points
    span = f"{scales.min():.3g}" if scales.ndim == 0 else f"{scales.min():.3g} … {scales.max():.3g}"
    points = (
        str(zero_points.min())
        if zero_points.min() == zero_points.max()
        else f"{zero_points.min()} … {zero_points.max()}"
    )
    return (
        str(quantizer.source.name),
        "weight" if quantizer.is_weight else "activation",
        str(quantizer.bits),
        f"{quantizer.qmin} … {quantizer.qmax}",
        points,
        span,
        quantizer.granularity,
    )
