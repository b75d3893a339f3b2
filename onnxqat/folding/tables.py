"""Tables of embeddings as codes: rows are looked up as integers, and only those become float.

A DequantizeLinear in front of the Gather would bring the whole table to float, in each run (ONNX Runtime) or at load (OpenVINO).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value
from onnxqat.graph.ops import Ops
from onnxqat.graph.qdq import Quantizer

#: Code of 4 bits that is stored as 0.
LOWEST = -8
#: What reports say of the nodes that bring rows to float.
PURPOSE = "rows of table {!r} are looked up as codes of {} bits"


def is_table(quantizer: Quantizer) -> bool:
    """Whether a weight is read as a table alone, with a scale for each row, and no zero points."""
    uses = quantizer.output.uses()
    rows = all(
        use.node.op_type == "Gather" and use.idx == 0 and not use.node.attributes.get_int("axis", 0) for use in uses
    )
    return bool(uses) and rows and quantizer.axis == 0 and not quantizer.block and not quantizer.zero_points.any()


def fold_table(graph: ir.Graph, quantizer: Quantizer, opset: int) -> None:
    """Lets each Gather of a table take rows of its codes, two to a byte where they have 4 bits or fewer, and of its scales."""
    codes, name = quantizer.codes, str(quantizer.source.name)
    packed = quantizer.bits <= 4 and codes.shape[1] % 2 == 0
    stored = constant_value(
        graph, f"{name}_quantized", _packed(codes) if packed else codes.astype(quantizer.dtype.numpy())
    )
    scales = constant_value(graph, f"{name}_scales", quantizer.scales[:, None])
    for use in list(quantizer.output.uses()):
        gather = use.node
        gather.replace_input_with(0, stored)
        result, op = gather.outputs[0], Ops(opset)
        rows = ir.val(fresh_value_name(graph, f"{gather.name}_codes"), type=stored.type, shape=result.shape)
        numbers = op.Cast(rows, to=ir.DataType.FLOAT)
        if packed:
            high = op.Floor(op.Mul(numbers, 1 / 16))
            low = op.Sub(numbers, op.Mul(high, 16.0))
            numbers = op.Sub(op.Concat(low, high, axis=-1), -float(LOWEST))
        final = op.Mul(numbers, op.Gather(scales, gather.inputs[1]))
        _insert(graph, gather, op, rows, final, result, PURPOSE.format(name, 4 if packed else 8))


def _packed(codes: NDArray[np.int32]) -> NDArray[Any]:
    """Two codes to a byte: those of the first half of a row in its low bits, those of the second half in its high ones."""
    first, second = np.split((codes - LOWEST).astype(np.uint8), 2, axis=1)
    return np.asarray(first | second << 4, np.uint8)


def _insert(
    graph: ir.Graph, gather: ir.Node, op: Ops, rows: ir.Value, final: ir.Value, result: ir.Value, purpose: str
) -> None:
    """Puts the nodes behind the Gather, which gives `rows` now; what reads its result reads `final`."""
    for node in op.nodes:
        node.name = fresh_name(graph, f"{gather.name}_{node.op_type}")
        node.metadata_props["onnxqat.float"] = purpose
        for value in node.outputs:
            value.name = fresh_value_name(graph, str(node.name))
    final.type, final.shape = result.type, result.shape
    graph.insert_after(gather, op.nodes)
    replace_value(graph, result, final)
    ir.convenience.replace_all_uses_with(rows, result)
    result.type = rows.type
