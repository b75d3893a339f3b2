"""Operators that compute with sizes of arrays of samples: what exporters write around Reshape and Expand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

from onnxqat.graph.constants import constant
from onnxqat.graph.samplewise.kinds import Call, Count, Coupled, Kind, Rows, Same, Size, Sizes

_END = 2**31 - 1


def _keep(call: Call) -> Kind:
    call.only(0)
    kind = call.kinds[0]
    assert isinstance(kind, Sizes)
    return kind


def _reshape(call: Call) -> Kind:
    kind = _keep(call)
    assert isinstance(kind, Sizes)
    target = call.sizes(1)
    if len(target) > 1:
        raise Coupled("arranges sizes as a matrix")
    return Sizes(kind.entries, scalar=not target)


def _squeeze(call: Call) -> Kind:
    kind = _keep(call)
    assert isinstance(kind, Sizes)
    return Sizes(kind.entries, scalar=True)


def _unsqueeze(call: Call) -> Kind:
    kind = _keep(call)
    assert isinstance(kind, Sizes)
    if not kind.scalar:
        raise Coupled("arranges sizes as a matrix")
    return Sizes(kind.entries)


def _gather(call: Call) -> Kind:
    call.only(0)
    index = constant(call.node.inputs[1])
    if index is None or index.ndim > 1:
        raise Coupled("chooses among sizes by what is computed")
    entries = call.sizes(0)
    return Sizes(tuple(entries[int(i)] for i in index.reshape(-1)), scalar=index.ndim == 0)


def _slice(call: Call) -> Kind:
    call.only(0)
    start, end = call.integers("starts", 1), call.integers("ends", 2)
    step = call.integers("steps", 4) or [1]
    if start is None or end is None:
        raise Coupled("chooses among sizes by what is computed")
    return Sizes(tuple(call.sizes(0)[slice(start[0], min(end[0], _END), step[0])]))


def _concat(call: Call) -> Kind:
    return Sizes(tuple(entry for index in range(len(call.kinds)) for entry in call.sizes(index)))


def _product(a: Size, b: Size) -> Size:
    if isinstance(a, Count) and isinstance(b, Count):
        raise Coupled("multiplies the number of samples by itself")
    if isinstance(a, Count) or isinstance(b, Count):
        known = [one.each if isinstance(one, Count) else one for one in (a, b)]
        return Count(None if None in known else int(known[0] or 0) * int(known[1] or 0))
    return None if a is None or b is None else a * b


def _mul(call: Call) -> Kind:
    a, b = call.sizes(0), call.sizes(1)
    length = max(len(a), len(b))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise Coupled("computes with the number of samples")
    pairs = zip(a * (length // len(a)), b * (length // len(b)), strict=True)
    scalar = all((isinstance(kind, Sizes) and kind.scalar) or call.rank(i) == 0 for i, kind in enumerate(call.kinds))
    return Sizes(tuple(_product(one, other) for one, other in pairs), scalar)


def _reduce_prod(call: Call) -> Kind:
    call.only(0)
    one: Size = 1
    return Sizes((reduce(_product, call.sizes(0), one),), scalar=not call.integer("keepdims", 1))


def _filled(call: Call) -> Kind:
    """ConstantOfShape, and Expand of what is the same for all."""
    index = 0 if call.node.op_type == "ConstantOfShape" else 1
    call.only(index)
    entries = call.sizes(index)
    counted = [axis for axis, entry in enumerate(entries) if isinstance(entry, Count)]
    if len(counted) != 1:
        raise Coupled("computes with the number of samples")
    rank = 0 if index == 0 else call.rank(0)
    axis = counted[0] + max(rank - len(entries), 0)
    behind = axis - max(rank, len(entries)) + rank
    if rank and behind >= 0 and call.shape(0)[behind] != 1:
        raise Coupled("repeats what may not be the same for all samples")
    found = entries[counted[0]]
    assert isinstance(found, Count)
    return Rows(axis, found.each)


def _shape_of_sizes(call: Call) -> Kind:
    return Same()


#: By operator, where what is read is sizes, some of which grow with the samples, and what is the same for all.
COUNTS: Mapping[str, Callable[[Call], Kind | list[Kind]]] = {
    "Cast": _keep,
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Expand": _filled,
    "Gather": _gather,
    "Identity": _keep,
    "Mul": _mul,
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": _shape_of_sizes,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
