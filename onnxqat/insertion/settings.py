"""Settings of single nodes and values: the configuration with its overrides and exceptions worked in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Range
from onnxqat.errors import InputError
from onnxqat.estimators.table import Estimate
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label, name_of
from onnxqat.insertion.groups import Group, inputs
from onnxqat.targets import Target
from onnxqat.targets.ort_cpu import PER_TENSOR

#: Width of weights that fit into products added in pairs in 16 bits.
SAFE_BITS = 7


def estimate_of(given: Range, percentile: float, *, float8: bool = False) -> Estimate:
    """The user's range, its open ends closed by the percentile of the whole configuration.

    `mse` weighs steps of one size against what is cut off. Those of E4M3 grow with the numbers, so that nothing is gained there.
    """
    if float8 and given.type == "mse":
        return Estimate(samples=given.samples)
    low = 100 - percentile if given.min_percentile is None else given.min_percentile
    high = percentile if given.max_percentile is None else given.max_percentile
    return Estimate(given.type, low, high, given.samples)


@dataclass(frozen=True)
class Layer:
    """Settings of one weighted node.

    Attributes:
        weight_bits: width of its weight's codes.
        activation_bits: width of the values it reads.
        symmetric: whether the zero point of the weight is fixed.
        per_channel: whether the weight has a scale per output channel.
        block: number of weights along the reduction that share a scale; 0: see `per_channel`.
        safe: whether its codes must fit into `SAFE_BITS` bits.
        estimate: how the weight's range is found.
    """

    weight_bits: int
    activation_bits: int
    symmetric: bool
    per_channel: bool
    block: int
    safe: bool
    estimate: Estimate


@dataclass(frozen=True)
class Activation:
    """Settings of one value computed at run time.

    Attributes:
        symmetric: whether its zero point is fixed.
        signed: whether its codes cover negative numbers even where it has none.
        per_channel: whether it has a scale per channel.
        estimate: how its range is found.
        float8: whether its codes are numbers of E4M3.
    """

    symmetric: bool
    signed: bool
    per_channel: bool
    estimate: Estimate
    float8: bool


def layers(groups: Sequence[Group], config: Config, target: Target) -> dict[Group, Layer]:
    """Settings of every node with a weight.

    Raises:
        InputError: blocks are asked for where they do not run.
    """
    weighted = [group for group in groups if group.weight is not None]
    ends = outermost(weighted)
    nearest = first({group.node for group in weighted}) if config.overflow_fix == "first_layer_only" else set()
    return {
        group: _layer(group, config, target, outer=group.node in ends, first=group.node in nearest)
        for group in weighted
    }


def activation(nodes: Collection[ir.Node], config: Config, target: Target) -> Activation:
    """Settings of a value that these nodes read or compute.

    Raises:
        InputError: a sign is demanded where the zero point is fitted.
    """
    names = ("activation_symmetric", "activation_signed", "activation_granularity", "activation_range")
    settings = {name: getattr(config, name) for name in names} | overridden(nodes, config, names)
    symmetric = settings["activation_symmetric"]
    symmetric = target.activations.symmetric if symmetric is None else symmetric
    if settings["activation_signed"] and not symmetric:
        shown = ", ".join(repr(name_of(node)) for node in nodes)
        raise InputError(
            f"configuration: activation_signed is set for {shown}, whose zero point is fitted to the values; "
            "set activation_symmetric too, or neither"
        )
    return Activation(
        symmetric=symmetric,
        signed=bool(settings["activation_signed"]),
        per_channel=settings["activation_granularity"] == "per_channel"
        and not any(node.op_type in PER_TENSOR for node in nodes),
        estimate=estimate_of(settings["activation_range"], config.percentile, float8=config.has_float8),
        float8=config.has_float8,
    )


def overridden(nodes: Collection[ir.Node], config: Config, names: Iterable[str]) -> dict[str, Any]:
    """Settings that overrides give for one of these nodes; the last one wins."""
    found: dict[str, Any] = {}
    for override in config.overrides:
        if any(override.matches(node) for node in nodes):
            found |= override.settings
    return {name: found[name] for name in names if name in found}


def first(nodes: Collection[ir.Node]) -> set[ir.Node]:
    """Nodes that an input of the model reaches without passing through another one of them."""
    found: set[ir.Node] = set()
    fresh: set[ir.Value | None] = set()
    graph = _graph(nodes)
    if graph is not None:
        fresh.update(graph.inputs)
        for node in graph:
            if fresh.isdisjoint(node.inputs):
                continue
            if node in nodes:
                found.add(node)
            else:
                fresh.update(node.outputs)
    return found


def outermost(weighted: Sequence[Group]) -> set[ir.Node]:
    """The first weighted nodes (none before them on any path) and the last (none after them)."""
    nodes = {group.node for group in weighted}
    graph = _graph(nodes)
    if graph is None:
        return set()
    order = list(graph)
    after: set[ir.Node] = set()
    for node in order:
        sources = {v.producer() for v in inputs(node)} - {None}
        if any(source in after or source in nodes for source in sources):
            after.add(node)
    before: set[ir.Node] = set()
    for node in reversed(order):
        if any(user in before or user in nodes for user in node.successors()):
            before.add(node)
    return {node for node in nodes if node not in after or node not in before}


def _graph(nodes: Collection[ir.Node]) -> ir.Graph | None:
    graph = next(iter(nodes)).graph if nodes else None
    assert graph is None or isinstance(graph, ir.Graph)
    return graph


def _layer(group: Group, config: Config, target: Target, *, outer: bool, first: bool) -> Layer:
    names = (
        "weight_bits",
        "activation_bits",
        "weight_symmetric",
        "weight_granularity",
        "weight_block_size",
        "weight_range",
    )
    settings, own = {name: getattr(config, name) for name in names}, overridden([group.node], config, names)
    block = 0 if group.reduction_axis is None else asked_block(group, config)
    if outer and not block and config.first_last_bits is not None:
        for name in ("weight_bits", "activation_bits"):
            settings[name] = max(settings[name], config.first_last_bits)
    settings |= own
    bits = settings["weight_bits"]
    if block:
        _check_block(group, block, bits, target)
    given = settings["weight_range"] or Range(type="min_max" if bits >= 8 else "mse")
    return Layer(
        weight_bits=bits,
        activation_bits=settings["activation_bits"],
        symmetric=settings["weight_symmetric"],
        per_channel=settings["weight_granularity"] == "per_channel"
        and _takes_channels(group.node.op_type, own, target),
        block=block,
        safe=first or config.overflow_fix == "enable",
        estimate=estimate_of(given, config.percentile, float8=config.has_float8),
    )


def _takes_channels(op_type: str, own: Collection[str], target: Target) -> bool:
    """Whether a weight may have a scale per channel: by default, or where a rule for the layer asks for it."""
    weights = target.weights
    return op_type not in weights.one_scale and (op_type not in weights.per_tensor or "weight_granularity" in own)


def asked_block(group: Group, config: Config) -> int:
    """Size of blocks that the configuration asks for in a layer, whether or not it can have them; 0: none."""
    if not group.quantizes_weight:
        return 0
    own = overridden([group.node], config, ["weight_block_size"])
    return int(own.get("weight_block_size", config.weight_block_size))


def _check_block(group: Group, block: int, bits: int, target: Target) -> None:
    """Raises InputError where the target runs no blocks."""
    what = f"configuration: weight_block_size is {block} for {label(group.node)}"
    remedy = "or weight_block_size=0 in a rule for it"
    if bits != 4:
        raise InputError(f"{what}, whose weights have {bits} bits; blocks take 4: set weight_bits=4, {remedy}")
    if group.reads:
        raise InputError(
            f"{what}, whose activations are quantized too; blocks run with float ones: set quantize_activations=False, {remedy}"
        )
    weight = constant(group.weight)
    size = 0 if weight is None else weight.shape[group.reduction_axis or 0]
    if size % block and not target.weights.shorter_blocks:
        raise InputError(
            f"{what}, which does not divide its {size} inputs, as {target.title} demands; choose a size that does, {remedy}"
        )
