"""Operators that move data, and what becomes of arrays of samples in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from onnxqat.graph.constants import constant
from onnxqat.graph.samplewise.kinds import Call, Count, Coupled, Kind, Rows, Same, Size, Sizes

_MIXES = "may mix the samples of a batch"
_LARGE = 2**31 - 1


def _transpose(call: Call) -> Kind:
    order = call.node.attributes.get_ints("perm", None)
    rank = call.rank(0) if order is None else len(order)
    return Rows(list(order or range(rank)[::-1]).index(call.first.axis), call.first.each)


def _flatten(call: Call) -> Kind:
    if call.first.axis or call.axis("axis", 1) < 1:
        raise Coupled(_MIXES)
    return call.first if call.axis("axis", 1) == 1 else Rows(0, None)


def _reshape(call: Call) -> Kind:
    """Samples stay apart where the same axis begins with them before and behind, so that each is one piece of memory."""
    call.only(0, 1)
    rows, target = call.first, call.sizes(1)
    copies = not call.integer("allowzero", 0)
    if rows.axis == 0:
        place = next((axis for axis, size in enumerate(target) if size != 1), 0)
        return Rows(place, _length(call, rows, target, place, copies=copies))
    before = call.shape(0)[: rows.axis]
    if all(size == 1 for size in before):
        place = next((axis for axis, size in enumerate(target) if size != 1), 0)
    else:
        place = rows.axis if _keeps(before, target, copies=copies) else len(target)
    size = target[place] if place < len(target) else None
    if isinstance(size, Count):
        return Rows(place, size.each)
    if size == 0 and copies and place == rows.axis:
        return rows
    raise Coupled(_MIXES)


def _keeps(before: Sequence[int | None], target: Sequence[Size], *, copies: bool) -> bool:
    """Whether a Reshape leaves the axes in front of the samples as they are."""
    pairs = zip(target, before, strict=False)
    return all((size == 0 and copies) or (isinstance(size, int) and size > 0 and size == old) for size, old in pairs)


def _length(call: Call, rows: Rows, target: Sequence[Size], place: int, *, copies: bool) -> int | None:
    """Length for each sample of the axis that begins with the samples behind a Reshape; before it, it was the first."""
    if place >= len(target):
        raise Coupled(_MIXES)
    size = target[place]
    if isinstance(size, Count):
        return size.each
    if size == 0 and copies and place == 0:
        return rows.each
    if size != -1 or rows.each is None:
        raise Coupled(_MIXES)
    old = call.shape(0)
    behind = [
        old[axis] if s == 0 and copies and axis < len(old) else s for axis, s in enumerate(target) if axis > place
    ]
    elements = [*old[1:], rows.each]
    if any(not isinstance(one, int) or one <= 0 for one in (*behind, *elements)):
        raise Coupled(_MIXES)
    each, rest = divmod(prod(elements), prod(behind))  # type: ignore[arg-type]
    if rest:
        raise Coupled(_MIXES)
    return int(each)


def _squeeze(call: Call) -> Kind:
    axes = call.axes(1)
    if not axes or call.first.axis in axes:
        raise Coupled(_MIXES)
    return Rows(call.first.axis - sum(axis < call.first.axis for axis in axes), call.first.each)


def _unsqueeze(call: Call) -> Kind:
    axes = call.integers("axes", 1)
    if axes is None:
        raise Coupled(_MIXES)
    rank = call.rank(0) + len(axes)
    kept = [axis for axis in range(rank) if axis not in [one % rank for one in axes]]
    return Rows(kept[call.first.axis], call.first.each)


def _expand(call: Call) -> Kind:
    call.only(0, 1)
    target, rank = call.sizes(1), call.rank(0)
    out = max(rank, len(target))
    axis = call.first.axis + out - rank
    place = axis - out + len(target)
    if place >= 0 and not (target[place] == 1 or isinstance(target[place], Count)):
        raise Coupled("repeats samples")
    return Rows(axis, call.first.each)


def _slice(call: Call) -> Kind:
    call.only(0)
    axes = call.axes(3)
    if axes is not None and call.first.axis not in axes:
        return call.first
    starts, ends = call.integers("starts", 1), call.integers("ends", 2)
    assert starts is not None
    assert ends is not None
    steps = call.integers("steps", 4) or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        if axis == call.first.axis and not (start == 0 and end >= _LARGE and step == 1):
            raise Coupled("takes some samples of a batch")
    return call.first


def _gather(call: Call) -> Kind:
    """Samples may be what is chosen from, or what chooses: tokens in a table."""
    data, chosen = call.kinds[0], call.kinds[1]
    axis = call.axis("axis", 0)
    if isinstance(data, Rows) and isinstance(chosen, Same):
        if axis == data.axis:
            raise Coupled("takes some samples of a batch")
        return data if data.axis < axis else Rows(data.axis - 1 + call.rank(1), data.each)
    if isinstance(data, Same) and isinstance(chosen, Rows):
        return Rows(axis + chosen.axis, chosen.each)
    raise Coupled(_MIXES)


def _gather_elements(call: Call) -> Kind:
    call.only(0, 1)
    if call.rows(1) != call.first or call.axis("axis", 0) == call.first.axis:
        raise Coupled(_MIXES)
    return call.first


def _concat(call: Call) -> Kind:
    kinds = {call.rows(index) for index in range(len(call.kinds))}
    if len(kinds) != 1 or call.axis("axis", 0) == call.first.axis:
        raise Coupled("puts the samples of batches together")
    return call.first


def _split(call: Call) -> Kind:
    call.only(0)
    if call.axis("axis", 0) == call.first.axis:
        raise Coupled("takes some samples of a batch")
    return call.first


def _pad(call: Call) -> Kind:
    call.only(0)
    pads = call.integers("pads", 1)
    axes = call.axes(3) if call.has(3) else list(range(call.rank(0)))
    assert pads is not None
    assert axes is not None
    if call.first.axis in axes:
        place = axes.index(call.first.axis)
        if pads[place] or pads[place + len(axes)]:
            raise Coupled("adds samples to a batch")
    return call.first


def _tile(call: Call) -> Kind:
    call.only(0)
    repeats = constant(call.node.inputs[1])
    if repeats is None or repeats.reshape(-1)[call.first.axis] != 1:
        raise Coupled("repeats samples")
    return call.first


def _one_hot(call: Call) -> Kind:
    call.only(0)
    axis = call.axis("axis", -1, call.rank(0) + 1)
    return Rows(call.first.axis + (axis <= call.first.axis), call.first.each)


def _shape(call: Call) -> Kind:
    sizes: list[Size] = list(call.shape(0))
    sizes[call.first.axis] = Count(call.first.each)
    start, end = call.integer("start", 0), call.node.attributes.get_int("end", None)
    return Sizes(tuple(sizes[start:end]))


def _size(call: Call) -> Kind:
    others = [size for axis, size in enumerate(call.shape(0)) if axis != call.first.axis]
    known = [size for size in (*others, call.first.each) if size is not None]
    return Sizes((Count(prod(known) if len(known) == len(others) + 1 else None),), scalar=True)


#: By operator, where something that is read is made of samples.
MOVEMENT: Mapping[str, Callable[[Call], Kind | list[Kind]]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
