"""The walk through a graph, from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

import onnx_ir as ir

from onnxqat.graph.io import opset
from onnxqat.graph.naming import label
from onnxqat.graph.nesting import captured_values
from onnxqat.graph.ops import BLOCKED
from onnxqat.graph.samplewise.counts import COUNTS
from onnxqat.graph.samplewise.kinds import Call, Count, Coupled, Kind, Mean, Rows, Same, Sizes, Total
from onnxqat.graph.samplewise.rules import BLOCKED_RULES, RULES
from onnxqat.graph.samplewise.totals import TOTALS

#: Operators whose result is another at each run, so that parts would not add up to the batch.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def follow(model: ir.Model, axes: Mapping[str, int], local: Container[str | None] = ()) -> dict[ir.Value, Kind]:
    """The kind of every value of a graph whose functions are inlined and whose shapes are inferred.

    Args:
        model: the model; its graph is sorted.
        axes: axis of the samples of each graph input that is made of them; the other inputs are the same for all.
        local: names of graph outputs in which places may be counted from the beginning of a part: only what computes on with
            the same part reads them.

    Raises:
        Coupled: a node lets samples know of each other, or is not known not to; the message names it.
    """
    kinds: dict[ir.Value, Kind] = {}
    for value in model.graph.inputs:
        axis = axes.get(str(value.name))
        if axis is not None and value.shape is not None:
            _check_free(value, axis)
        kinds[value] = Same() if axis is None else Rows(axis)
    for node in model.graph:
        try:
            found = _kinds_of(node, kinds, opset(model), local)
        except Coupled as reason:
            raise Coupled(f"{label(node)} {reason}") from None
        kinds.update(zip(node.outputs, found, strict=True))
    return kinds


def _check_free(value: ir.Value, axis: int) -> None:
    assert value.shape is not None
    if axis >= value.shape.rank() or isinstance(value.shape[axis], int):
        raise Coupled(f"input {value.name!r} takes batches of a fixed size")


def _kinds_of(
    node: ir.Node, kinds: Mapping[ir.Value, Kind], version: int, local: Container[str | None]
) -> Sequence[Kind]:
    read = tuple(None if value is None else kinds.get(value, Same()) for value in node.inputs)
    if node.op_type in _RANDOM:
        raise Coupled("draws random numbers")
    inner = [kinds.get(value, Same()) for value in captured_values(node)]
    varying = [kind for kind in (*read, *inner) if kind is not None and not isinstance(kind, Same)]
    if not varying:
        return [Same()] * len(node.outputs)
    rule = _table(node, varying).get(node.op_type)
    if rule is None:
        raise Coupled(_unknown(varying))
    found = rule(Call(node, read, version, local))
    if isinstance(found, Sizes) and not any(isinstance(size, Count) for size in found.entries):
        found = Same()
    return found if isinstance(found, list) else [found] * len(node.outputs)


def _table(node: ir.Node, varying: Sequence[Kind]) -> Mapping[str, Callable[[Call], Kind | list[Kind]]]:
    """The rules for a node's operators and the kinds that it reads, without what is the same for all."""
    samples = any(isinstance(kind, Rows) for kind in varying)
    if node.domain:
        return BLOCKED_RULES if node.domain == BLOCKED and samples else {}
    if any(isinstance(kind, Total | Mean) for kind in varying):
        if samples:
            raise Coupled("brings what was computed over the whole batch back to its samples")
        return TOTALS
    return RULES if samples else COUNTS


def _unknown(varying: Sequence[Kind]) -> str:
    if any(isinstance(kind, Total | Mean) for kind in varying):
        return "makes of a mean or a sum over samples what is neither"
    if all(isinstance(kind, Sizes) for kind in varying):
        return "computes with the number of samples"
    return "is not known to keep the samples of a batch apart"
