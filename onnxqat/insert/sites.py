"""Which values get a quantizer, and with how many bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.config import Config, RangeEstimator
from onnxqat.graph.qdq import Spec
from onnxqat.insert.groups import Group, inputs
from onnxqat.insert.origins import origins
from onnxqat.insert.targets import Target

#: Width of values that feed no weighted layer (residual Add, pooling): narrower ones lose accuracy and save nothing.
PLAIN_BITS = 8


@dataclass(frozen=True, eq=False)
class WeightSite:
    """An initializer that gets a quantizer.

    Attributes:
        value: the initializer.
        spec: how it is quantized.
        estimator: how its range is found.
        users: the weighted nodes that read the codes; others, in float, keep the float weight.
    """

    value: ir.Value
    spec: Spec
    estimator: RangeEstimator
    users: tuple[ir.Node, ...]


@dataclass(frozen=True, eq=False)
class ActivationSite:
    """A value computed at run time that gets a quantizer; its sign, and so its type, is known only after calibration.

    Attributes:
        value: the value.
        bits: width of its codes.
        users: the nodes that read the quantized value; None: all, and graph outputs too.
        joined: values that share the scale with this one; only itself where none do.
    """

    value: ir.Value
    bits: int
    users: tuple[ir.Node, ...] | None
    joined: frozenset[ir.Value]


@dataclass(frozen=True)
class _Layer:
    """Settings of one weighted node after overrides and the exception for first and last layers."""

    weight_bits: int
    activation_bits: int
    symmetric: bool
    per_channel: bool
    estimator: RangeEstimator


def weight_sites(groups: Sequence[Group], target: Target, config: Config) -> list[WeightSite]:
    """One site per weight; a weight that several nodes share gets the widest codes that one of them asks for.

    Its scales are per channel only if all of them agree on the channel axis.
    """
    layers = _layers(groups, config)
    readers: dict[ir.Value, list[Group]] = defaultdict(list)
    for group in layers:
        if group.weight is not None:
            readers[group.weight].append(group)
    sites = []
    for weight, sharing in readers.items():
        layer = max((layers[group] for group in sharing), key=lambda one: one.weight_bits)
        axes = {group.weight_axis if layers[group].per_channel else None for group in sharing}
        narrow = target.narrow_weights and layer.symmetric
        axis = axes.pop() if len(axes) == 1 else None
        spec = Spec(layer.weight_bits, symmetric=layer.symmetric, narrow=narrow, axis=axis)
        sites.append(WeightSite(weight, spec, layer.estimator, tuple(group.node for group in sharing)))
    return sites


def activation_sites(groups: Sequence[Group], target: Target, config: Config) -> list[ActivationSite]:
    """One site per value, at the origin of its data and before any branch.

    Where users want different widths (a weighted layer 4 bits, the residual Add beside it 8), the value gets the widest, and
    the others read it through a second, narrower quantizer.
    """
    layers = _layers(groups, config)
    readers: dict[ir.Value, dict[int, dict[ir.Value, list[ir.Node]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    joined: dict[ir.Value, frozenset[ir.Value]] = {}
    for group in groups:
        bits = layers[group].activation_bits if group in layers else PLAIN_BITS
        for value in group.reads:
            above = origins(value, target)
            for root in above:
                readers[root][bits][value].append(group.node)
            if config.activation_granularity == "per_tensor":
                _join(joined, above)
    for group in groups:
        if group.node.op_type in target.quantized_outputs and group.writes not in readers:
            readers[group.writes][PLAIN_BITS] = defaultdict(list)
    return _sites(readers, joined)


def _sites(
    readers: dict[ir.Value, dict[int, dict[ir.Value, list[ir.Node]]]], joined: dict[ir.Value, frozenset[ir.Value]]
) -> list[ActivationSite]:
    together = {root: joined.get(root, frozenset({root})) for root in readers}
    base = {root: max(bits for value in together[root] for bits in readers[value]) for root in readers}
    sites = [ActivationSite(root, bits, None, together[root]) for root, bits in base.items()]
    narrower: dict[tuple[ir.Value, int], list[ir.Node]] = {}
    for root, by_bits in readers.items():
        for bits, by_value in by_bits.items():
            if bits < base[root]:
                narrower.update({(value, bits): nodes for value, nodes in by_value.items()})
    return sites + [
        ActivationSite(value, bits, tuple(nodes), frozenset({value})) for (value, bits), nodes in narrower.items()
    ]


def _join(joined: dict[ir.Value, frozenset[ir.Value]], values: Sequence[ir.Value]) -> None:
    together = frozenset(values).union(*(joined.get(v, frozenset()) for v in values))
    joined.update(dict.fromkeys(together, together))


def _layers(groups: Sequence[Group], config: Config) -> dict[Group, _Layer]:
    weighted = [g for g in groups if g.weight is not None]
    outermost = _outermost(weighted)
    return {group: _layer(group.node, config, outermost=group.node in outermost) for group in weighted}


def _layer(node: ir.Node, config: Config, *, outermost: bool) -> _Layer:
    settings = {
        name: getattr(config, name)
        for name in ("weight_bits", "activation_bits", "weight_symmetric", "weight_granularity", "weight_range")
    }
    if outermost and config.first_last_bits is not None:
        for name in ("weight_bits", "activation_bits"):
            settings[name] = max(settings[name], config.first_last_bits)
    for override in config.overrides:
        if override.matches(node):
            settings |= override.settings
    bits = settings["weight_bits"]
    return _Layer(
        weight_bits=bits,
        activation_bits=settings["activation_bits"],
        symmetric=settings["weight_symmetric"],
        per_channel=settings["weight_granularity"] == "per_channel",
        estimator=settings["weight_range"] or ("min_max" if bits >= 8 else "mse"),
    )


def _outermost(weighted: Sequence[Group]) -> set[ir.Node]:
    """The first weighted nodes (none before them on any path) and the last (none after them)."""
    nodes = {group.node for group in weighted}
    if not nodes:
        return set()
    graph = next(iter(nodes)).graph
    assert graph is not None
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
