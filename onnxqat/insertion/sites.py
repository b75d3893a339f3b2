"""Sites of a model: the values that get a quantizer, and their numbers of bits."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.estimators.table import Estimate
from onnxqat.graph.biases import NORMALIZING
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Spec
from onnxqat.insertion import settings
from onnxqat.insertion.calibration.calibrate import Observed
from onnxqat.insertion.groups import Group, is_float
from onnxqat.insertion.origins import origins
from onnxqat.insertion.settings import SAFE_BITS, Activation, Layer
from onnxqat.insertion.widths import PLAIN_BITS, Widths, width_read
from onnxqat.targets import Target
from onnxqat.targets.ort_cpu import PER_TENSOR

#: For each value, the nodes that read it as integers: by width, and by the value behind data movement that they read.
Readers = dict[ir.Value, dict[int, dict[ir.Value, list[ir.Node]]]]

log = logging.getLogger(__name__)

#: Layers that a warning names.
NAMED = 5
#: Operators whose constant operands are no parameters.
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Concat"})


@dataclass(frozen=True, eq=False)
class WeightSite:
    """An initializer that gets a quantizer.

    Attributes:
        value: the initializer.
        spec: specification of its quantizer.
        estimate: how its range is found.
        users: the nodes that read the codes; others, in float, keep the float weight.
        is_fixed: whether its scale is not trained, as what it holds is not.
    """

    value: ir.Value
    spec: Spec
    estimate: Estimate
    users: tuple[ir.Node, ...]
    is_fixed: bool = False


@dataclass(frozen=True, eq=False)
class ActivationSite:
    """A value computed at run time that gets a quantizer; its sign, and so its type, is known only after calibration.

    Attributes:
        value: the value.
        bits: width of its codes.
        users: the nodes that read the quantized value; None: all, and graph outputs too.
        joined: values that share the scale with this one; only itself where none do.
        settings: its settings in the configuration.
        fixed: scale and zero point that the target demands; None where they follow from calibration.
    """

    value: ir.Value
    bits: int
    users: tuple[ir.Node, ...] | None
    joined: frozenset[ir.Value]
    settings: Activation
    fixed: tuple[float, int] | None = None

    @property
    def observed(self) -> Observed:
        """Task for calibration: the value to observe and its estimator."""
        return Observed(self.value, self.axis, self.settings.estimate)

    @property
    def axis(self) -> int | None:
        """Channel axis of its scales; None per tensor, under a shared scale, and without a fixed number of channels."""
        shape, producer = self.value.shape, self.value.producer()
        if not self.settings.per_channel or len(self.joined) > 1 or shape is None or shape.rank() < 2:
            return None
        if producer is not None and producer.op_type in PER_TENSOR:
            return None
        return 1 if isinstance(shape[1], int) else None


def weight_sites(groups: Sequence[Group], target: Target, config: Config) -> list[WeightSite]:
    """One site per weight; a weight that several nodes share gets the widest codes that one of them asks for.

    Its scales are per channel only if all of them agree on the channel axis.
    """
    layers = settings.layers(groups, config, target)
    _warn_of_channels([group for group in layers if settings.asked_block(group, config) and not layers[group].block])
    readers: dict[ir.Value, list[Group]] = defaultdict(list)
    for group in layers:
        if group.weight is not None and group.quantizes_weight:
            readers[group.weight].append(group)
    sites = []
    for weight, sharing in readers.items():
        layer = max((layers[group] for group in sharing), key=lambda one: one.weight_bits)
        safe = any(layers[group].safe for group in sharing)
        shapes = {_shape(group, layers[group]) for group in sharing}
        axis, block = shapes.pop() if len(shapes) == 1 else (None, 0)
        bits = min(layer.weight_bits, SAFE_BITS) if safe else layer.weight_bits
        narrow = bits == 8 or (target.weights.narrow and layer.symmetric and bits == layer.weight_bits and not block)
        signed = layer.symmetric or not block
        spec = Spec(bits, signed, layer.symmetric, narrow, axis, block, config.has_float8)
        sites.append(WeightSite(weight, spec, layer.estimate, tuple(group.node for group in sharing)))
    return sites


def constant_sites(groups: Sequence[Group], computed: Widths) -> list[WeightSite]:
    """One site per constant operand and width, on a grid like that of an activation; normalizations keep scales of 8 bits."""
    readers: dict[tuple[ir.Value, int], list[ir.Node]] = defaultdict(list)
    for group in groups:
        bits = PLAIN_BITS if group.node.op_type in NORMALIZING else computed[group]
        for value in group.constants:
            readers[value, bits].append(group.node)
    return [
        WeightSite(
            value,
            Spec(bits, signed=False, symmetric=False),
            Estimate(),
            tuple(nodes),
            all(node.op_type in _ARITHMETIC for node in nodes),
        )
        for (value, bits), nodes in readers.items()
    ]


def _warn_of_channels(groups: Sequence[Group]) -> None:
    if groups:
        named = ", ".join(label(group.node) for group in groups[:NAMED])
        more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
        log.warning(
            "weight_block_size: only MatMul and Gemm by a matrix have blocks; a scale per channel in %s%s", named, more
        )


def _shape(group: Group, layer: Layer) -> tuple[int | None, int]:
    """Axis and block size of the scales that a layer asks for."""
    if layer.block:
        return group.reduction_axis, layer.block
    return (group.weight_axis if layer.per_channel else None), 0


def activation_sites(
    graph: ir.Graph, groups: Sequence[Group], computed: Widths, target: Target, config: Config
) -> list[ActivationSite]:
    """One site per value, at the origin of its data and before any branch.

    Where users want different widths (a weighted layer 4 bits, the residual Add beside it 8), the value gets the widest, or
    on a target that takes every value as integers that of the kernel which writes it; the others read it through a second
    quantizer.
    """
    written = {group.writes: computed[group] for group in groups} if target.placement.whole else {}
    readers: Readers = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    joined: dict[ir.Value, frozenset[ir.Value]] = {}
    for group in groups:
        for value in group.reads:
            above, bits = origins(value, target), width_read(group, value, computed[group], target)
            for root in above:
                readers[root][bits][value].append(group.node)
            if config.activation_granularity == "per_tensor":
                _join(joined, above)
    for value in _written(graph, groups, target, config):
        if value not in readers:
            readers[value][written.get(value, PLAIN_BITS)] = defaultdict(list)
    for unified in _unified(groups, config):
        _join(joined, [root for group in unified for value in group.reads for root in origins(value, target)])
    quantized = {group.node for group in groups}
    found = _sites(readers, joined, written, lambda nodes: settings.activation(nodes, config, target), quantized)
    return [replace(site, fixed=_fixed(site, target)) for site in found]


def _fixed(site: ActivationSite, target: Target) -> tuple[float, int] | None:
    producer = site.value.producer()
    return None if producer is None else target.ranges.fixed.get(producer.op_type, {}).get(site.bits)


def _written(graph: ir.Graph, groups: Sequence[Group], target: Target, config: Config) -> list[ir.Value]:
    """Values that are quantized whoever reads them: where kernels must write integers, and the model's outputs if asked for."""
    written = [g.writes for g in groups if g.reads and _must_write_integers(g, target)]
    if config.quantize_outputs:
        outputs = [value for value in graph.outputs if is_float(value) and value.producer() is not None]
        written += [root for value in outputs for root in origins(value, target)]
    return written


def _must_write_integers(group: Group, target: Target) -> bool:
    """Whether the kernel writes integers or none at all: by its operator, or with an activation between it and float readers.

    ONNX Runtime 1.32 leaves a Gemm in float that a Relu or Clip follows, but no QuantizeLinear behind that.
    """
    if target.placement.whole or group.node.op_type in target.placement.writes:
        return True
    last = group.writes.producer()
    absorbed = last is not None and last.op_type in target.operators.absorbs
    return bool(target.operators.weighted & target.placement.writes) and absorbed and bool(group.writes.uses())


def _unified(groups: Sequence[Group], config: Config) -> list[list[Group]]:
    """The groups of each rule for a common scale.

    Raises:
        InputError: a node of such a rule reads nothing as integers, or is in two of them.
    """
    found = []
    seen: set[Group] = set()
    for rules in config.unified_scales:
        members = [group for group in groups if group.reads and any(rule.matches(group.node) for rule in rules)]
        for rule in rules:
            if not any(rule.matches(group.node) for group in members):
                raise InputError(
                    f"configuration: unified_scales: {rule.shown} reads nothing as integers; name quantized nodes"
                )
        if not seen.isdisjoint(members):
            name = next(group.node.name for group in members if group in seen)
            raise InputError(f"configuration: unified_scales: node {name!r} is in two groups; join them")
        seen.update(members)
        found.append(members)
    return found


def _sites(
    readers: Readers,
    joined: dict[ir.Value, frozenset[ir.Value]],
    written: Mapping[ir.Value, int],
    settled: Callable[[Collection[ir.Node]], Activation],
    quantized: Collection[ir.Node],
) -> list[ActivationSite]:
    together = {root: joined.get(root, frozenset({root})) for root in readers}
    base = {root: _base(together[root], readers, written) for root in readers}
    sites = []
    for root, bits in base.items():
        nodes = list(dict.fromkeys(n for value in together[root] for n in _concerned(value, readers[value], quantized)))
        sites.append(ActivationSite(root, bits, None, together[root], settled(nodes)))
    others: dict[tuple[ir.Value, int], list[ir.Node]] = {}
    for root, by_bits in readers.items():
        for bits, by_value in by_bits.items():
            if bits != base[root]:
                others.update({(value, bits): nodes for value, nodes in by_value.items()})
    return sites + [
        ActivationSite(value, bits, tuple(nodes), frozenset({value}), settled(nodes))
        for (value, bits), nodes in others.items()
    ]


def _base(together: Collection[ir.Value], readers: Readers, written: Mapping[ir.Value, int]) -> int:
    """Width of the first quantizer of values that share a scale: that of their kernels, or the widest that a reader wants."""
    given = [written[value] for value in together if value in written]
    return max(given or [bits for value in together for bits in readers[value]])


def _concerned(
    value: ir.Value, by_bits: dict[int, dict[ir.Value, list[ir.Node]]], quantized: Collection[ir.Node]
) -> list[ir.Node]:
    """The nodes whose settings a value has: those that read it, and the one that computes it unless that reads integers too."""
    producer = value.producer()
    computed_by = [] if producer is None or producer in quantized else [producer]
    return computed_by + [node for by_value in by_bits.values() for nodes in by_value.values() for node in nodes]


def _join(joined: dict[ir.Value, frozenset[ir.Value]], values: Sequence[ir.Value]) -> None:
    together = frozenset(values).union(*(joined.get(v, frozenset()) for v in values))
    joined.update(dict.fromkeys(together, together))
