"""Contents of a model as tables: what is quantized and how, what stays in float and why, what can be trained."""

from __future__ import annotations

import onnx_ir as ir
from rich.console import Group
from rich.table import Table

from onnxqat.autodiff.differentiate import blocked_text
from onnxqat.graph.naming import name_of
from onnxqat.graph.qdq import Quantizer, quantizers
from onnxqat.terminal.plain import cells
from onnxqat.training.health.trainability import obstacles, trainability


def quantization_table(model: ir.Model) -> Group:
    """One row per quantizer, then one per node that `insert` left in float, with the reason it wrote down."""
    table = Table(
        "value", "kind", "bits", "codes", "zero point", "scale", "granularity", title="quantizers", title_justify="left"
    )
    for quantizer in quantizers(model):
        table.add_row(*cells(*_row(quantizer)))
    others = Table("node", "operator", "why in float", title="nodes in float", title_justify="left")
    for node in model.graph:
        if (
            node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Constant")
            and "onnxqat.float" in node.metadata_props
        ):
            others.add_row(*cells(name_of(node), node.op_type, node.metadata_props["onnxqat.float"]))
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
