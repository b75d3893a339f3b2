"""Residual Adds whose operands come from kernels that add them, in float, to their accumulator: these need no quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxqat.graph.edit import sole_user
from onnxqat.insertion.groups import Group, Skip, inputs
from onnxqat.targets import Target


def without_accumulated(group: Group, groups: Sequence[Group], target: Target) -> Group:
    """An Add without the reads that the kernels of weighted nodes hand it before they requantize."""
    if group.node.op_type != "Add" or target.placement.accumulates_one:
        return group
    handed = _handed(group, groups, target)
    return replace(group, reads=tuple(value for value in group.reads if value not in handed))


def single_sides(groups: Sequence[Group], target: Target) -> tuple[list[Group], list[Skip]]:
    """The groups, Adds without the one read that a kernel adds; and those Adds of which no kernel adds any.

    Of two that could be added it is the one that was computed in more steps: the other is the short cut.
    """
    if not target.placement.accumulates_one:
        return list(groups), []
    kept: list[Group] = []
    plain: list[Skip] = []
    steps = _steps(groups)
    for group in groups:
        if group.node.op_type != "Add":
            kept.append(group)
            continue
        handed = max(_handed(group, groups, target), key=lambda value: steps.get(value, 0), default=None)
        if handed is None:
            layers = " or ".join(sorted(target.placement.accumulates))
            plain.append(Skip(group.node, f"adds up no output of {layers} alone"))
        else:
            kept.append(replace(group, reads=tuple(value for value in group.reads if value is not handed)))
    return kept, plain


def _handed(group: Group, groups: Sequence[Group], target: Target) -> list[ir.Value]:
    """Values that an Add reads from kernels that may add it; nothing where it broadcasts."""
    if _may_broadcast(inputs(group.node)):
        return []
    adding = target.placement.accumulates
    weighted = {g.writes for g in groups if g.reads and g.quantizes_weight and g.node.op_type in adding}
    return [value for value in group.reads if value in weighted and sole_user(value) is group.node]


def _may_broadcast(values: Sequence[ir.Value]) -> bool:
    """Whether shapes differ as far as they are known; free sizes have other names behind each convolution."""
    shapes = [value.shape for value in values]
    if None in shapes or len({shape.rank() for shape in shapes if shape is not None}) != 1:
        return True
    return any(len({size for size in sizes if isinstance(size, int)}) > 1 for sizes in zip(*shapes, strict=True))


def _steps(groups: Sequence[Group]) -> dict[ir.Value, int]:
    """Number of nodes on the longest way from the model's inputs to each value."""
    graph = groups[0].node.graph if groups else None
    steps: dict[ir.Value, int] = {}
    for node in graph or ():
        longest = 1 + max((steps.get(value, 0) for value in inputs(node)), default=0)
        steps.update(dict.fromkeys(node.outputs, longest))
    return steps
