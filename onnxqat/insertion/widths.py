"""Widths of the codes that kernels compute on."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import WIDE
from onnxqat.insertion import settings
from onnxqat.insertion.groups import Group
from onnxqat.insertion.origins import origins
from onnxqat.insertion.settings import Layer
from onnxqat.targets import Target

log = logging.getLogger(__name__)

#: Width of values that feed no weighted layer (residual Add, pooling): narrower ones lose accuracy and save nothing.
PLAIN_BITS = 8

Widths = Mapping[Group, int]


def widths(
    groups: Sequence[Group],
    layers: Mapping[Group, Layer],
    target: Target,
    config: Config,
    losing_values: Container[str] = (),
) -> Widths:
    """Width of what each group reads, and, on a target that takes every value as integers, of what it writes.

    There a kernel that writes a value of 16 bits computes on 16 bits itself, unless an override says otherwise: what it reads
    with fewer is converted. Values that lose most with 8 bits, by name, get 16.
    """
    losing = {
        group
        for group in groups
        if any(str(root.name) in losing_values for value in group.reads for root in origins(value, target))
    }
    found = {group: _asked(group, layers, config, losing) for group in groups}
    if not target.placement.whole:
        _warn_of_simulation(found, target)
        return found
    wide = {
        root for group in groups if found[group] == WIDE for value in group.reads for root in origins(value, target)
    }
    found |= {group: WIDE for group in groups if group.writes in wide and _own(group, config) is None}
    narrow = [group for group in groups if found[group] == WIDE and group.node.op_type in target.widths.only_narrow]
    if narrow:
        named = ", ".join(label(group.node) for group in narrow)
        log.warning("%s computes these on 8 bits only, so they keep 8: %s", target.title, named)
    return found | dict.fromkeys(narrow, PLAIN_BITS)


def width_read(group: Group, value: ir.Value, computed: int, target: Target) -> int:
    """Width of one of the values that a group reads, from the one that it computes on."""
    index = target.widths.narrow_operands.get(group.node.op_type)
    is_narrow = index is not None and group.weight is None and group.node.inputs[index] is value
    return min(computed, PLAIN_BITS) if is_narrow else computed


def _asked(group: Group, layers: Mapping[Group, Layer], config: Config, losing: Container[Group]) -> int:
    own = _own(group, config)
    if own is None and group in losing:
        return WIDE
    if group in layers:
        return layers[group].activation_bits
    return max(config.activation_bits if own is None else own, PLAIN_BITS)


def _own(group: Group, config: Config) -> int | None:
    """Width that an override gives a group."""
    return settings.overridden([group.node], config, ["activation_bits"]).get("activation_bits")


def _warn_of_simulation(found: Widths, target: Target) -> None:
    if WIDE in found.values() and WIDE in target.widths.simulated:
        log.warning(
            "activations of 16 bits: %s has no kernels for them and simulates them, in float between quantizers",
            target.title,
        )
