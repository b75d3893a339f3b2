"""Functions that exporters write as many nodes: LayerNormalization, Softmax, Gelu, HardSwish, Swish.

Their inner values (squares, exponentials, differences of nearly equal numbers) span ranges that no 8-bit grid covers, so a
function stays in float as a whole even where the target has integer kernels for its parts. Each has one node that tells it
(a square root, an exponential, …), its anchor: above it everything comes from one value x, and below it the parts meet again
in one value y. Both are looked for, whatever nodes an exporter puts between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.movement import REARRANGING
from onnxqat.insertion.groups import inputs, is_float

_MEANS = frozenset(["ReduceMean", "ReduceSum", "GlobalAveragePool"])
_REDUCTIONS = _MEANS | {"ReduceMax"}
_MOVES = REARRANGING | {"Expand", "Cast", "Identity"}
_ARITHMETIC = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Max", "Min", "Clip", "Relu"])
_PARTS = _REDUCTIONS | _MOVES | _ARITHMETIC | {"Exp", "Erf", "Tanh", "Sigmoid", "HardSigmoid"}
#: No function here has more nodes, with all that exporters put between them.
LARGEST = 40

_Test = Callable[[set[ir.Node]], bool]


@dataclass(frozen=True, eq=False)
class Whole:
    """A function written as several nodes.

    Attributes:
        name: the operator that it stands for.
        nodes: its nodes.
        reads: its one input x.
        writes: its one output y.
    """

    name: str
    nodes: frozenset[ir.Node]
    reads: ir.Value
    writes: ir.Value


def find_wholes(graph: ir.Graph) -> dict[ir.Node, Whole]:
    """Finds the nodes that are parts of such a function."""
    position = {node: index for index, node in enumerate(graph)}
    found: dict[ir.Node, Whole] = {}
    for node in graph:
        whole = _whole(node, position) if node.op_type in _ANCHORS and is_float(node.outputs[0]) else None
        if whole is not None and not any(part in found for part in whole.nodes):
            found.update(dict.fromkeys(whole.nodes, whole))
    return found


def _whole(anchor: ir.Node, position: Mapping[ir.Node, int]) -> Whole | None:
    for name, is_source, is_function in _ANCHORS[anchor.op_type]:
        above = _above(anchor, position, is_source)
        if above is None:
            continue
        x, nodes = above
        y = _below(x, nodes, position)
        if y is not None and is_function(nodes):
            end = _with_constants(y, nodes)
            return Whole(name, frozenset(nodes), x, end)
    return None


def _above(anchor: ir.Node, position: Mapping[ir.Node, int], is_source: _Test) -> tuple[ir.Value, set[ir.Node]] | None:
    """The one value x that the anchor is computed from, and the nodes between."""
    nodes = {anchor}
    while len(nodes) < LARGEST:
        open_values = {value for node in nodes for value in _data(node) if value.producer() not in nodes}
        if len(open_values) == 1 and is_source(nodes):
            return open_values.pop(), nodes
        producers = [value.producer() for value in open_values]
        latest = max((node for node in producers if node in position), key=lambda node: position[node], default=None)  # type: ignore[index]
        if latest is None or latest.op_type not in _PARTS:
            return None
        nodes.add(latest)
    return None


def _below(x: ir.Value, nodes: set[ir.Node], position: Mapping[ir.Node, int]) -> ir.Value | None:
    """The one value y in which everything that `nodes` compute meets; the nodes up to it are added to them."""
    while len(nodes) < LARGEST:
        live = _live(nodes)
        if len(live) == 1 and _joins_two(live[0].producer()):
            return live[0]
        users = {user for value in live for user in value.consumers()} - nodes
        first = min(users, key=lambda node: position.get(node, len(position)), default=None)
        if first is None or first.op_type not in _PARTS or any(value.is_graph_output() for value in live):
            return None
        if first not in position:  # it is inside a branch or body
            return None
        pulled = _pulled(first, x, nodes)
        if pulled is None:
            return None
        nodes |= pulled
    return None


def _pulled(node: ir.Node, x: ir.Value, nodes: set[ir.Node]) -> set[ir.Node] | None:
    """The node with those that compute its inputs from only x; None if something else goes into it."""
    taken = {node}
    for value in _data(node):
        producer = value.producer()
        if value is x or producer in nodes:
            continue
        if producer is None or producer.op_type not in _PARTS or len(taken) > 4:
            return None
        inner = _pulled(producer, x, nodes)
        if inner is None:
            return None
        taken |= inner
    return taken


def _with_constants(y: ir.Value, nodes: set[ir.Node]) -> ir.Value:
    """Y behind the constant factors and terms that follow it; their nodes are added to the others."""
    while len(y.uses()) == 1 and not y.is_graph_output():
        user = next(iter(y.consumers()))
        if user.graph is not y.graph or user.op_type not in ("Mul", "Div", "Add") or _data(user) != [y]:
            break
        nodes.add(user)
        y = user.outputs[0]
    return y


def _joins_two(node: ir.Node | None) -> bool:
    """Whether a product or quotient brings two branches together."""
    return node is not None and node.op_type in ("Mul", "Div") and len(set(_data(node))) == 2


def _live(nodes: set[ir.Node]) -> list[ir.Value]:
    """Returns the results of the nodes that other nodes read."""
    results = [value for node in nodes for value in node.outputs]
    return [v for v in results if v.is_graph_output() or any(user not in nodes for user in v.consumers())]


def _data(node: ir.Node) -> list[ir.Value]:
    """Float inputs that are not constant."""
    return [value for value in inputs(node) if constant(value) is None and is_float(value)]


def _count(nodes: Iterable[ir.Node], types: Iterable[str]) -> int:
    return sum(node.op_type in types for node in nodes)


def _forks(nodes: set[ir.Node]) -> bool:
    """Whether two branches have met: a sum of two values, neither of them constant."""
    return any(node.op_type in ("Add", "Mul") and len(set(_data(node))) == 2 for node in nodes)


def _normalizes(nodes: set[ir.Node]) -> bool:
    return _count(nodes, _MEANS) == 2 and _count(nodes, ["Div", "Reciprocal", "Pow"]) > 0


def _divides_by_sum(nodes: set[ir.Node]) -> bool:
    return _count(nodes, ["ReduceSum"]) == 1 and _count(nodes, ["Div", "Reciprocal"]) == 1


def _gates(nodes: set[ir.Node]) -> bool:
    """X · f(x), element by element."""
    return _count(nodes, _REDUCTIONS) == 0


def _at_once(_: set[ir.Node]) -> bool:
    return True


#: Anchor of a function → its name, whether the value that is left is x, and whether what was found is the function.
_ANCHORS: Mapping[str, tuple[tuple[str, _Test, _Test], ...]] = {
    "Sqrt": (("LayerNormalization", lambda nodes: _count(nodes, _MEANS) >= 2, _normalizes),),
    "Exp": (
        ("Softmax", lambda nodes: _count(nodes, ["ReduceMax"]) == 1, _divides_by_sum),
        ("Softmax", _at_once, _divides_by_sum),
    ),
    "Erf": (("Gelu", lambda nodes: len(nodes) == 2, _gates),),
    "Tanh": (("Gelu", _forks, _gates),),
    "HardSigmoid": (("HardSwish", _at_once, _gates),),
    "Clip": (("HardSwish", lambda nodes: len(nodes) == 2, _gates),),
    "Sigmoid": (("Swish", _at_once, _gates),),
}
