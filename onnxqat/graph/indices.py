"""Checks constant indices before any runtime uses them: some kernels read or write beyond their data without a check.

Where a size is not known, only what no size allows is refused. Before shapes are inferred, only sizes of constants and inputs
are trusted: what a file says of other values may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.naming import refused

#: Trips of a loop that only its constant count ends.
MOST_TRIPS = 2**24


class Indexed(NamedTuple):
    """Input of a node that holds indices, and their limits.

    Attributes:
        place: the input that holds them.
        limits: for each of the columns of the last axis, or for all elements if there is one: how many things the indices count,
            None where that is not known.
        from_end: whether -1 means the last one.
        other: a number that means "no index".
    """

    place: int
    limits: Sequence[int | None]
    from_end: bool = True
    other: int | None = None


def check_indices(model: ir.Model, *, inferred: bool = False) -> None:
    """Refuses nodes whose constant indices point beyond what they index.

    Args:
        model: the model.
        inferred: whether its shapes are inferred, and not just what the file says.

    Raises:
        InputError: names node and index.
    """
    for node in model.graph.all_nodes():
        if node.op_type in _INDEXED:
            _check(node, Sizes(node, inferred))
        _check_trips(node)


class Sizes(NamedTuple):
    """Sizes and types of a node's inputs, as far as they can be trusted."""

    node: ir.Node
    inferred: bool

    def of(self, place: int) -> list[int | None] | None:
        """The size of each axis; None where it is not known."""
        value = self._trusted(place)
        if value is None or value.shape is None:
            return None
        return [size if isinstance(size, int) else None for size in value.shape]

    def dtype(self, place: int) -> ir.DataType | None:
        """The type of a tensor's elements; None where it is not known, or no tensor."""
        value = self._trusted(place)
        return value.dtype if value is not None and isinstance(value.type, ir.TensorType) else None

    def _trusted(self, place: int) -> ir.Value | None:
        value = self.node.inputs[place] if len(self.node.inputs) > place else None
        return value if value is not None and (self.inferred or _is_stored(value)) else None


def _is_stored(value: ir.Value) -> bool:
    return value.producer() is None or constant(value) is not None


def _check(node: ir.Node, sizes: Sizes) -> None:
    indexed = _INDEXED[node.op_type](node, sizes)
    array = None if indexed is None else _constant(node, indexed.place)
    if indexed is None or array is None or not array.size or array.dtype.kind not in "iu":
        return
    columns = array.reshape(-1, len(indexed.limits))
    for column, limit in zip(columns.T, indexed.limits, strict=True):
        given = column if indexed.other is None else column[column != indexed.other]
        low = 0 if not indexed.from_end else -math.inf if limit is None else -limit
        high = math.inf if limit is None else limit - 1
        wrong = [
            int(one) for one in (given.min(initial=0), given.max(initial=0)) if given.size and not low <= one <= high
        ]
        if wrong:
            beyond = "below 0" if limit is None else f"which is none of the {limit} that there are"
            raise refused(node, f"input {indexed.place} holds the index {wrong[0]}, {beyond}")


def _check_trips(node: ir.Node) -> None:
    """Refuses a Loop that only ends by a huge constant count."""
    count = _constant(node, 0) if node.op_type == "Loop" and "body" in node.attributes else None
    if count is None or count.size != 1 or int(count.item()) <= MOST_TRIPS:
        return
    body = node.attributes["body"].as_graph()
    goes_on = body.outputs[0] if body.outputs else None
    while goes_on is not None and (source := goes_on.producer()) is not None and source.op_type == "Identity":
        goes_on = source.inputs[0]
    if goes_on is None or constant(goes_on) is not None or goes_on in body.inputs:
        raise refused(node, f"runs {int(count.item())} times, with no condition that ends it")


def _constant(node: ir.Node, place: int) -> NDArray[Any] | None:
    return constant(node.inputs[place]) if len(node.inputs) > place else None


def _along_axis(node: ir.Node, sizes: Sizes) -> Indexed | None:
    data, axis = sizes.of(0), node.attributes.get_int("axis", 0)
    return None if not data or not -len(data) <= axis < len(data) else Indexed(1, [data[axis]])


def _columns(node: ir.Node, sizes: Sizes) -> Indexed | None:
    """Each row of GatherND's and ScatterND's indices is a place: one number for each of the leading axes."""
    data, indices = sizes.of(0), sizes.of(1)
    first = node.attributes.get_int("batch_dims", 0)
    width = indices[-1] if indices else None
    if data is None or not width or first + width > len(data):
        return None
    return Indexed(1, data[first : first + width])


def _labels(node: ir.Node, sizes: Sizes) -> Indexed | None:
    """Labels are classes of the scores, and each class has a weight where there are weights."""
    known = [found[at] for found, at in ((sizes.of(0), 1), (sizes.of(2), 0)) if found is not None and len(found) > at]
    limit = min((size for size in known if size is not None), default=None)
    return Indexed(1, [limit], from_end=False, other=node.attributes.get_int("ignore_index", None))


def _batches(node: ir.Node, sizes: Sizes) -> Indexed | None:
    """Samples of the batch; if its size is unknown, only the first one is certain to be there."""
    data = sizes.of(0)
    return Indexed(2, [(data[0] or 1) if data else None], from_end=False)


def _unpooled(node: ir.Node, sizes: Sizes) -> Indexed | None:
    """Places in the whole output, whose size is given, or follows from the windows."""
    pooled, given = sizes.of(1), _constant(node, 2)
    if given is not None:
        return Indexed(1, [math.prod(given.reshape(-1).tolist())], from_end=False)
    kernel = node.attributes.get_ints("kernel_shape", ())
    if pooled is None or len(pooled) != len(kernel) + 2:
        return None
    strides = node.attributes.get_ints("strides") or [1] * len(kernel)
    given_pads = list(node.attributes.get_ints("pads") or [0] * 2 * len(kernel))
    pads = np.reshape(given_pads, (2, -1)).sum(axis=0).tolist()
    windows = zip(pooled[2:], strides, kernel, pads, strict=True)
    spread = [(size or 1) * stride - stride + width - pad for size, stride, width, pad in windows]
    return Indexed(1, [math.prod([pooled[0] or 1, pooled[1] or 1, *spread])], from_end=False)


def _axes(node: ir.Node, sizes: Sizes) -> Indexed | None:
    data = sizes.of(0)
    return None if data is None else Indexed(3, [len(data)])


_INDEXED: Mapping[str, Callable[[ir.Node, Sizes], Indexed | None]] = {
    **dict.fromkeys(("Gather", "GatherElements", "Scatter", "ScatterElements"), _along_axis),
    **dict.fromkeys(("GatherND", "ScatterND"), _columns),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _labels),
    "MaxUnpool": _unpooled,
    "Pad": _axes,
    "RoiAlign": _batches,
}
