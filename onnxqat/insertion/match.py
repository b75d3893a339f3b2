"""Finds the nodes that become integer kernels, and the reason for each that stays in float. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Select
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import sole_user
from onnxqat.graph.movement import moved
from onnxqat.graph.naming import label
from onnxqat.graph.nesting import inner_nodes
from onnxqat.insertion.accumulated import single_sides, without_accumulated
from onnxqat.insertion.groups import Group, Skip, inputs, is_float
from onnxqat.insertion.masks import masked_values
from onnxqat.insertion.origins import origins
from onnxqat.insertion.patterns import MATCHERS
from onnxqat.insertion.patterns.decomposed import Whole, find_wholes
from onnxqat.insertion.patterns.pooling import match as match_data
from onnxqat.insertion.patterns.weighted import attention_reason
from onnxqat.insertion.scopes import no_node
from onnxqat.insertion.settings import overridden
from onnxqat.insertion.transforms import fixed_transforms
from onnxqat.targets import Target


def find_groups(model: ir.Model, target: Target, config: Config) -> tuple[list[Group], list[Skip]]:
    """Groups of nodes that the target runs on integers, in order of execution, and the nodes that stay in float.

    Raises:
        InputError: a rule of the configuration selects no node.
        UnsupportedModelError: there is no weight to quantize.
    """
    nodes = list(model.graph)
    _check_rules(nodes, config.rules)
    ignored = {node for node in nodes if any(rule.matches(node) for rule in config.ignore)}
    wholes = {n: w for n, w in find_wholes(model.graph).items() if w.name not in target.operators.decomposed}
    masked = masked_values(model.graph) if target.placement.whole else set()
    groups: list[Group] = []
    skips: list[Skip] = []
    absorbed: set[ir.Node | None] = set()
    for node in nodes:
        if node in absorbed:
            continue
        if node in wholes and node not in ignored:
            result: Group | Skip | None = Skip(node, f"part of a {wholes[node].name}, which stays in float as a whole")
        else:
            result = _match(node, target, ignored)
        if isinstance(result, Group):
            result = _obstacle(result, wholes, masked, target) or result
        if isinstance(result, Skip):
            skips.append(result)
        elif result is not None:
            absorbed.add(result.writes.producer())
            written = _behind_activations(result.writes, target, ignored)
            absorbed.update(written)
            groups.append(replace(result, writes=written[-1].outputs[0] if written else result.writes))
    transforms = fixed_transforms(nodes, groups, target, config)
    groups = [group for group in groups if group.node not in {skip.node for skip in transforms}]
    skips += transforms
    _check_overrides(groups, target, config)
    asked = [_asked_for(group, target, config) for group in groups]
    skips += [result for result in asked if isinstance(result, Skip)]
    groups, plain = single_sides([result for result in asked if isinstance(result, Group)], target)
    skips += plain
    groups, dropped = _inside_integer_regions(groups, wholes, target)
    if not any(group.weight is not None for group in groups):
        raise UnsupportedModelError(_inside_branches(model.graph, target) or _no_weights(skips, target))
    return [without_accumulated(group, groups, target) for group in groups], skips + dropped


def _asked_for(group: Group, target: Target, config: Config) -> Group | Skip:
    """The group with what the configuration leaves in float taken out; a kernel without weights needs all that it reads."""
    if config.only and not any(rule.matches(group.node) for rule in config.only):
        return Skip(group.node, "not among the nodes that the configuration selects")
    names = ("quantize_weights", "quantize_activations")
    asked = {name: getattr(config, name) for name in names} | overridden([group.node], config, names)
    reads = group.reads if asked["quantize_activations"] else ()
    if not config.quantize_inputs:
        reads = tuple(v for v in reads if not any(above.is_graph_input() for above in origins(v, target)))
    if group.weight is None and reads != group.reads:
        return Skip(group.node, "the configuration leaves what it reads in float")
    quantizes_weight = group.weight is not None and asked["quantize_weights"]
    if not reads and not quantizes_weight:
        return Skip(group.node, "the configuration leaves its weight and what it reads in float")
    return replace(group, reads=reads, quantizes_weight=quantizes_weight)


def _inside_branches(graph: ir.Graph, target: Target) -> str | None:
    """Returns the remedy where the layers are inside a node: the branches of an `If`, the body of a loop."""
    for node in graph:
        if not any(inner.op_type in target.operators.weighted for inner in inner_nodes(node)):
            continue
        where = f"model: its layers are inside {label(node)}"
        if node.op_type != "If":
            return f"{where}, where nothing is quantized; export it with the loop unrolled"
        deciding = _deciding_inputs(node.inputs[0])
        if not deciding:
            return f"{where}, whose condition is computed from the data; export the model with the branch taken"
        options = " ".join(f"--fix-input {name}=VALUE" for name in deciding)
        return f"{where}, which input {', '.join(map(repr, deciding))} decides; fix it ({options}, or Config(fixed_inputs=...))"
    return None


def _deciding_inputs(condition: ir.Value | None) -> list[str]:
    """Names of the graph inputs that a condition is computed from; none where one of them is data."""
    seen, waiting = {condition}, [condition]
    found = set()
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if value is not None and value.is_graph_input():
            if value.dtype == ir.DataType.FLOAT and (value.shape is None or value.shape.rank() > 0):
                return []
            found.add(str(value.name))
        for above in producer.inputs if producer is not None else ():
            if above not in seen:
                seen.add(above)
                waiting.append(above)
    return sorted(found)


def _no_weights(skips: Sequence[Skip], target: Target) -> str:
    reasons = [f"{label(skip.node)}: {skip.reason}" for skip in skips if skip.node.op_type in target.operators.weighted]
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return (
        f"model: has no weights to quantize on {target.name} ({shown or 'no ' + ', '.join(sorted(target.operators.weighted))}); "
        "give a float32 model with constant weights, and check the ignore rules"
    )


def _match(node: ir.Node, target: Target, ignored: set[ir.Node]) -> Group | Skip | None:
    """The node's group or the reason against it; None where there is nothing to say (data movement, shapes, activations)."""
    if node in ignored:
        return Skip(node, "ignored by the configuration")
    if node.op_type in target.operators.kernels:
        return MATCHERS[node.op_type](node, target)
    carried = moved(node, target.operators.moves | target.operators.joins) is not None
    if target.placement.whole and not carried and node.op_type in target.operators.absorbs | target.operators.moves:
        return match_data(node, target)
    if (
        carried
        or node.op_type in target.operators.absorbs
        or not any(is_float(v) for v in node.outputs)
        or all(constant(value) is not None for value in inputs(node))
    ):
        return None
    return Skip(node, f"{target.name} has no integer kernel for {node.op_type}")


def _obstacle(
    group: Group, wholes: Mapping[ir.Node, Whole], masked: Collection[ir.Value], target: Target
) -> Skip | None:
    """Returns why a node stays in float that has a kernel."""
    if reason := target.limits.too_small(group.node):
        return Skip(group.node, reason)
    if group.weight is not None:
        return None
    return _attention_obstacle(group, wholes, target) or _mask_obstacle(group, masked)


def _attention_obstacle(group: Group, wholes: Mapping[ir.Node, Whole], target: Target) -> Skip | None:
    """Returns why a product with probabilities from a Softmax that is written as several nodes stays in float."""
    above = [v.producer() for v in group.reads[:1] if group.node.op_type == "MatMul"]
    softmax = any(node in wholes and wholes[node].name == "Softmax" for node in above if node is not None)
    return Skip(group.node, attention_reason(target)) if softmax and not target.placement.softmax_product else None


def _mask_obstacle(group: Group, masked: Collection[ir.Value]) -> Skip | None:
    """Returns why a node stays in float that reads or writes a mask beside data."""
    held = next((value for value in (*group.reads, group.writes) if value in masked), None)
    if held is None:
        return None
    return Skip(group.node, f"{held.name!r} holds a mask beside data, for which no grid of 8 bits is fine enough")


def _behind_activations(value: ir.Value, target: Target, ignored: set[ir.Node]) -> list[ir.Node]:
    """The activations that vanish in the requantization of `value`'s producer, one behind the other."""
    found: list[ir.Node] = []
    producer, user, absorbed = value.producer(), sole_user(value), target.operators.absorbs
    if producer is not None and producer.op_type in target.ranges.fixed:
        return found
    while user is not None and user not in ignored and user.op_type in absorbed and _has_fixed_bounds(user):
        found.append(user)
        user = sole_user(user.outputs[0])
    return found


def _has_fixed_bounds(node: ir.Node) -> bool:
    """Whether a Clip bounds codes as well as numbers: its bounds are constant, and there is something between them."""
    if node.op_type != "Clip":
        return True
    given = [value for value in node.inputs[1:] if value is not None]
    bounds = [array.item() for value in given if (array := constant(value)) is not None]
    return len(bounds) == len(given) and bounds == sorted(bounds)


def _inside_integer_regions(
    groups: Sequence[Group], wholes: Mapping[ir.Node, Whole], target: Target
) -> tuple[list[Group], list[Skip]]:
    """Drops kernels without weights whose surroundings are float: quantizing only them costs accuracy and time."""
    kept = list(groups)
    dropped: list[Skip] = []
    while not target.placement.whole:
        weighted = [g for g in kept if g.weight is not None]
        integer = {g.writes for g in kept} | {above for g in weighted for v in g.reads for above in origins(v, target)}
        read = {above for g in kept for v in g.reads for above in origins(v, target)}
        out = [
            Skip(g.node, reason) for g in kept if (reason := _float_side(g, integer, read, wholes, target)) is not None
        ]
        if not out:
            return kept, dropped
        dropped += out
        gone = {skip.node for skip in out}
        kept = [g for g in kept if g.node not in gone]
    return kept, dropped


def _float_side(
    group: Group, integer: set[ir.Value], read: set[ir.Value], wholes: Mapping[ir.Node, Whole], target: Target
) -> str | None:
    if group.weight is not None or (group.node.op_type == "MatMul" and target.placement.products):
        return None
    if group.node.op_type == "Add" and target.placement.accumulates_one:
        return None  # a float short cut would make the kernel write float (`accumulated.single_sides`)
    for value in group.reads:
        sources = [] if constant(value) is not None else origins(value, target)
        if not all(_is_integer(above, integer, wholes, target) for above in sources):
            return f"reads {value.name!r}, which stays in float"
    if group.node.op_type in target.placement.writes and group.writes not in read:
        return f"its output {group.writes.name!r} is read in float only"
    return None


def _is_integer(value: ir.Value, integer: set[ir.Value], wholes: Mapping[ir.Node, Whole], target: Target) -> bool:
    """Whether a value is computed as integers, or by an activation in float between two pairs."""
    producer = value.producer()
    if value in integer or producer is None:
        return value in integer
    if producer in wholes:
        data = wholes[producer].reads if wholes[producer].name in target.operators.between else None
    else:
        data = producer.inputs[0] if producer.op_type in target.operators.between else None
    return data is not None and all(_is_integer(above, integer, wholes, target) for above in origins(data, target))


def _check_rules(nodes: Sequence[ir.Node], rules: Iterable[Select]) -> None:
    for rule in rules:
        if not any(rule.matches(node) for node in nodes):
            raise InputError(
                no_node(
                    rule,
                    rule.name or re.sub(r"[^\w/.]", "", rule.pattern or ""),
                    {str(node.name): str(node.name) for node in nodes},
                )
            )


def _check_overrides(groups: Sequence[Group], target: Target, config: Config) -> None:
    """Refuses an override that changes nothing, because the nodes that it selects have no quantizer of that kind."""
    weighted = [group.node for group in groups if group.weight is not None]
    nodes = [group.node for group in groups]
    computing = [above.producer() for group in groups for value in group.reads for above in origins(value, target)]
    places = {
        "weight": weighted,
        "quantize_weights": weighted,
        "activation_bits": nodes if config.has_wide_activations else weighted,
        "quantize_activations": nodes,
        "activation": [*nodes, *(node for node in computing if node is not None)],
    }
    for override in config.overrides:
        kinds = [name if name in places else name.split("_")[0] for name in override.settings]
        if kinds and not any(override.matches(node) for kind in kinds for node in places[kind]):
            raise InputError(
                f"configuration: the rule for {override.shown} sets {', '.join(override.settings)} where there is nothing to "
                "set; name nodes that are quantized"
            )
