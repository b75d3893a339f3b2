"""Gradient of Det: the cofactors (Jacobi's formula), themselves determinants of the minors."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Refused, RuleOrChoice
from onnxqat.autodiff.shapes import reshape, sizes
from onnxqat.graph.ops import Ops

_LARGEST = 8  # rows: the minors take n² times the memory of the matrix


def det_rule(node: ir.Node) -> Custom | Refused:
    """The minors are cut out with constant indices."""
    n = _rows(node.inputs[0])
    if n is None or n > _LARGEST:
        return Refused(f"its matrices are not known to have at most {_LARGEST} rows")
    return Custom(det_gradient)


def det_gradient(op: Ops, call: Call, dy: ir.Value) -> ir.Value:
    """dX_ij = dy·(−1)^(i+j)·det(X without row i and column j), also where X is singular."""
    x, rank = call.inputs[0], call.rank()
    n = _rows(x)
    assert x is not None
    assert n is not None
    assert rank is not None
    batch = sizes(op, x, range(rank - 2))
    upstream = reshape(op, dy, batch, [1, 1])
    if n == 1:
        return op.Mul(upstream, op.Add(op.Mul(x, 0.0), 1.0))
    kept = [[k for k in range(n) if k != i] for i in range(n)]
    elements = [n * row + column for i in range(n) for j in range(n) for row in kept[i] for column in kept[j]]
    minors = op.Gather(reshape(op, x, batch, [n * n]), op.ints(elements), axis=-1)
    cofactors = reshape(op, op.Det(reshape(op, minors, batch, [n * n, n - 1, n - 1])), batch, [n, n])
    signs = op.Constant(value=ir.tensor([[(-1.0) ** (i + j) for j in range(n)] for i in range(n)], dtype=x.dtype))
    return op.Mul(op.Mul(cofactors, signs), upstream)


def _rows(x: ir.Value | None) -> int | None:
    if x is None or x.shape is None:
        return None
    return next((side for side in (x.shape[-1], x.shape[-2]) if isinstance(side, int)), None)


RULES: Mapping[str, RuleOrChoice] = {
    "Det": det_rule,
}
