"""Finds the nodes that a rule names as NNCF does (`Select.scope`), and gives the rule their ONNX names.

PyTorch's exporter names nodes by modules, `/features/features.0/Conv`, and this package's export of Keras by layers,
`conv2d_1/convolution`. Functions are counted in the model as it was exported, before anything is folded.
"""

from __future__ import annotations

import ast
import logging
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import TypeVar

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Override, Select
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.movement import MOVEMENT
from onnxqat.graph.types import infer
from onnxqat.insertion.widths import PLAIN_BITS
from onnxqat.nncf.scopes import EXPRESSION, OUTPUT, Scope, expression, functions_of, operators_of, parse, spellings
from onnxqat.targets import Target

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Select)
Path = tuple[str, ...]

#: Where PyTorch's newer exporter notes the modules of a node.
NAME_SCOPES = "pkg.torch.onnx.name_scopes"
#: Operators behind which a value is still what was computed before them, besides those that preparation folds away.
PASSING = MOVEMENT | {"Concat", "Dropout"}
#: Functions that multiply by the weight of a module, and by anything else; both become MatMul and Gemm.
LINEAR, PRODUCT = frozenset({"linear", "addmm"}), frozenset({"matmul", "rmatmul", "bmm", "baddbmm"})
#: Scopes that a warning lists.
LISTED = 5


@dataclass(frozen=True)
class Place:
    """Place of a node in the modules.

    Attributes:
        node: the node.
        paths: names of its modules, or Keras layers, from the outermost; several where its name and its weight's differ.
        operators: operators by which it goes, in lower case.
        is_linear: whether it is a call of `linear` where it might be one of `matmul`.
    """

    node: ir.Node
    paths: frozenset[Path]
    operators: frozenset[str]
    is_linear: bool

    @property
    def written(self) -> list[str]:
        """Path and operator as one text, each of them with each."""
        return ["/".join((*path, operator)) for path in sorted(self.paths) for operator in sorted(self.operators)]

    @property
    def functions(self) -> frozenset[str]:
        """Functions of PyTorch that it may be."""
        return functions_of(self.operators) - (PRODUCT if self.is_linear else LINEAR)


def with_names(config: Config, model: io.ModelLike, prepared: ir.Model, target: Target) -> Config:
    """The configuration with names in place of scopes.

    Args:
        config: what the user asks for.
        model: the model as it was given.
        prepared: what rules are matched against.
        target: says which nodes have weights.

    Raises:
        InputError: a scope names no node; the message names the nearest.
    """
    if all(rule.scope is None for rule in config.rules):
        return config
    scopes = Scopes(io.load(model, oldest_opset=7), {str(node.name) for node in prepared.graph}, target)
    overrides = [rule.model_copy(update={"exclude": scopes.named(rule.exclude)}) for rule in config.overrides]
    only = scopes.named(config.only)
    if config.only and not only:
        raise InputError("configuration: no node that the configuration selects is left once the model is folded")
    changes = {
        "only": only,
        "ignore": scopes.named(config.ignore),
        "overrides": scopes.named(overrides),
        "unified_scales": tuple(scopes.named(group) for group in config.unified_scales),
    }
    scopes.warn()
    return config.model_copy(update=changes)


class Scopes:
    """The nodes of a model by NNCF's names.

    Args:
        model: the model as it was exported.
        kept: names of the nodes that preparation leaves.
        target: says which nodes have weights.
    """

    def __init__(self, model: ir.Model, kept: set[str], target: Target) -> None:
        infer(model)
        self._graph, self._kept, self._weighted = model.graph, kept, target.operators.weighted
        self._places = _places(model.graph)
        self._folded: list[str] = []
        self._unread: list[str] = []

    def named(self, rules: Iterable[R]) -> tuple[R, ...]:
        """The rules with names or patterns of names; without those for nodes that are folded away."""
        return tuple(found for rule in rules if (found := self._named(rule)) is not None)

    def warn(self) -> None:
        """Warns of the rules that `named` has left out."""
        for scopes, why in (
            (self._folded, "these nodes are folded into others, so that rules for them have no effect"),
            (self._unread, "no layer with weights reads these values, so that they keep 8 bits"),
        ):
            if scopes:
                more = f" and {len(scopes) - LISTED} more" if len(scopes) > LISTED else ""
                log.warning("configuration: %s: %s%s", why, ", ".join(map(repr, scopes[:LISTED])), more)

    def _named(self, rule: R) -> R | None:
        if rule.scope is None:
            return rule
        text = rule.scope.removesuffix(OUTPUT)
        found = [place.node for place in self._matching(text)]
        values = [value for node in found for value in node.outputs] or self._input(text)
        if not values:
            raise InputError(no_node(rule, text, {text: str(p.node.name) for p in self._places for text in p.written}))
        behind = text != rule.scope
        names = {str(node.name) for node in (self._readers(values) if behind else found)} & self._kept
        if not names:
            if not behind:
                self._folded.append(rule.scope)
            elif not (isinstance(rule, Override) and rule.settings == {"activation_bits": PLAIN_BITS}):
                self._unread.append(rule.scope)
            return None
        if len(names) == 1:
            return rule.model_copy(update={"scope": None, "name": names.pop()})
        pattern = f"^(?:{'|'.join(map(re.escape, sorted(names)))})$"
        return rule.model_copy(update={"scope": None, "pattern": pattern})

    def _matching(self, text: str) -> list[Place]:
        if text.startswith(EXPRESSION):
            names = [(place, str(place.node.name)) for place in self._places]
            plain = re.compile(text.replace(EXPRESSION, ""))
            found = [place for place, name in names if plain.search(name)]
            return found + [place for place, name in self._names() if expression(text).search(name)]
        layer = text.partition("^")[0]  # NNCF numbers the calls of a shared Keras layer: `dense^1`
        named = [place for place in self._places if place.node.name == text]
        named = named or [place for place in self._places if f"{place.node.name}/".startswith(f"{layer}/")]
        scope = parse(text)
        return named or ([] if scope is None else self._called(scope))

    def _names(self) -> Iterator[tuple[Place, str]]:
        """Names that NNCF may give to each place: its modules, and a function with the number of the call."""
        calls: Counter[tuple[Path, str]] = Counter()
        for place in self._places:
            for call in product(sorted(place.paths), sorted(place.functions)):
                for spelling in spellings(call[1], calls[call]):
                    yield place, "/".join((*call[0], spelling))
                calls[call] += 1

    def _called(self, scope: Scope) -> list[Place]:
        """The call of the function in its module; empty if there is none."""
        calls = [place for place in self._places if scope.function in place.functions and scope.path in place.paths]
        return calls[scope.call : scope.call + 1]

    def _input(self, text: str) -> list[ir.Value]:
        number = re.fullmatch(r"/?nncf_model_input_(\d+)", text)
        return [] if number is None else list(self._graph.inputs[int(number[1]) : int(number[1]) + 1])

    def _readers(self, values: Sequence[ir.Value]) -> Iterator[ir.Node]:
        """Weighted nodes that read the values, also behind data movement and what is folded away."""
        for value in values:
            for user, index in value.uses():
                if user.op_type in self._weighted:
                    yield from [user] if index == 0 else []
                elif user.op_type in PASSING or _adds_a_bias(user) or str(user.name) not in self._kept:
                    yield from self._readers(user.outputs)


def no_node(rule: Select, wanted: str, names: Mapping[str, str]) -> str:
    """Message that a rule matches no node, with the names of the nearest.

    Args:
        rule: the rule.
        wanted: text by which to look for the nearest.
        names: names of nodes by the texts to compare with it.
    """
    scope = parse(wanted)
    operators = [] if scope is None else sorted(operators_of(scope.function))
    texts = [wanted] if scope is None else ["/".join((*scope.path, operator)) for operator in operators]
    near = [names[text] for wanted in texts for text in get_close_matches(wanted, names, n=3)]
    nearest = f" (nearest: {', '.join(map(repr, dict.fromkeys(near)))})" if near else ""
    return f"configuration: the rule for {rule.shown} matches no node{nearest}; list the nodes with `onnxqat inspect`"


def _places(graph: ir.Graph) -> list[Place]:
    """The places of nodes that compute with the inputs of the model; not of those that compute sizes, or add a bias."""
    found: list[Place] = []
    given: set[ir.Value | None] = set(graph.inputs)
    for node in graph:
        if node.op_type in ("Shape", "Size") or given.isdisjoint(node.inputs):
            continue
        given.update(node.outputs)
        is_float = any(value.dtype is not None and value.dtype.is_floating_point() for value in node.outputs)
        if is_float and not _adds_a_bias(node):
            found.append(replace(_place(node), is_linear=_is_linear(node, given)))
    return [_with_module_called_again(place, found) for place in found]


def _is_linear(node: ir.Node, given: Container[ir.Value | None]) -> bool:
    """Whether the second input is a weight, and no parameter that a module multiplies by itself."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight in given:
        return False
    noted = "".join(_noted(node)[-1:]).startswith("linear")
    return noted or node.op_type == "Gemm" or not weight.is_initializer() or _is_weight(str(weight.name))


def _noted(node: ir.Node) -> list[str]:
    """Modules and function as PyTorch's newer exporter notes them; empty where another exporter wrote the model."""
    text = node.metadata_props.get(NAME_SCOPES)
    return list(ast.literal_eval(text)) if text else []


def _is_weight(name: str) -> bool:
    """Whether an initializer has the name that PyTorch gives to the weight of a module, or to a folded transpose of one."""
    return name.endswith(".weight") or name.startswith("onnx::")


def _adds_a_bias(node: ir.Node) -> bool:
    """Whether the node is the second half of what was one function, `linear` of more than two axes."""
    initializers = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    return node.op_type == "Add" and any(name.endswith(".bias") for name in initializers)


def _place(node: ir.Node) -> Place:
    modules, _, last = str(node.name).strip("/").rpartition("/")
    noted = _noted(node)
    path = noted[-2].split(".") if noted else _names(modules.split("/"))
    weights = [str(value.name).split(".")[:-1] for value in node.inputs if value is not None and value.is_initializer()]
    operators = frozenset({node.op_type.lower(), re.sub(r"_\d+$", "", last).lower()})
    paths = frozenset(tuple(filter(None, one)) for one in (path, *filter(None, weights)))
    return Place(node, paths, operators, is_linear=False)


def _with_module_called_again(place: Place, places: Sequence[Place]) -> Place:
    """The place, also by the name of its module without the number that a second call appends: `relu_1`."""
    if len(place.paths) > 1:
        return place
    (path,) = place.paths
    plain = (*path[:-1], re.sub(r"_\d+$", "", path[-1])) if path else path
    first = any(plain in other.paths and other.operators & place.operators for other in places)
    return replace(place, paths=place.paths | {plain}) if first else place


def _names(segments: Sequence[str]) -> Iterator[str]:
    """Names of modules: `b1.0` under `b1`, the child of a Sequential, is `0`; `layers.0`, of a ModuleList, `layers` and `0`."""
    before = ""
    for segment in segments:
        yield from segment.removeprefix(f"{before}.").split(".")
        before = segment
