"""Products of stacks of matrices that are read transposed."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Formula
from onnxqat.graph.ops import Ops


def transposed_matmul(op: Ops, call: Call) -> ir.Value:
    """a·b, a or b with its last two axes swapped first (`transA`, `transB`)."""
    a, b = call.required(0), call.required(1)
    return op.MatMul(_swapped(op, a) if call.get("transA", 0) else a, _swapped(op, b) if call.get("transB", 0) else b)


def _swapped(op: Ops, x: ir.Value) -> ir.Value:
    if x.shape is None:
        return op.Einsum(x, equation="...ij->...ji")
    *stack, rows, columns = range(len(x.shape))
    return op.Transpose(x, perm=[*stack, columns, rows])


BODIES: Mapping[str, Formula] = {"FusedMatMul": transposed_matmul}
