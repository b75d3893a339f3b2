"""Work that the parts of a batch share: weights are quantized once before them, and their gradients summed before quantizers.

The gradient of a quantizer is linear in the gradient of its output. So the parts only go as far as that, and what follows is
computed once, of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.autodiff.names import SUFFIX
from onnxqat.graph.nesting import captured_values
from onnxqat.training.quantizers import fakequant
from onnxqat.training.training_graph.cut import cut

_KEY = "onnxqat.quantized_weights"


@dataclass(frozen=True)
class QuantizedWeight:
    """Values around the quantizer of a trained weight, by name.

    Attributes:
        parameter: the weight.
        output: the quantizer's output; None where it is computed again for the backward pass.
        gradient: gradient of the output.
    """

    parameter: str
    output: str | None
    gradient: str


@dataclass(frozen=True)
class Borders:
    """Names of the values at which a training graph is cut; `ahead` and `behind` are in groups, for several threads.

    Attributes:
        weights: the weights whose quantizers are before and behind the parts.
        ahead: outputs of the quantizers.
        behind: results that depend on the batch only through gradients of these outputs.
    """

    weights: tuple[QuantizedWeight, ...]
    ahead: Sequence[Sequence[str]]
    behind: Sequence[Sequence[str]]

    @property
    def outputs(self) -> dict[str, ir.DataType]:
        """Types of all outputs of the quantizers that are kept."""
        return dict.fromkeys((name for names in self.ahead for name in names), ir.DataType.FLOAT)

    @property
    def gradients(self) -> dict[str, ir.DataType]:
        """Types of the gradients of the quantizers' outputs."""
        return dict.fromkeys((one.gradient for one in self.weights), ir.DataType.FLOAT)

    def of_parts(self, results: Iterable[str]) -> list[str]:
        """Names of what the parts compute of all these results, and the gradients of the quantizers' outputs."""
        apart = {name for names in (*self.ahead, *self.behind) for name in names}
        return [*(name for name in results if name not in apart), *self.gradients]


@dataclass(frozen=True)
class Shared:
    """A training graph in three.

    Attributes:
        weights: the weights whose quantizers are before and behind the parts.
        ahead: graphs from parameters to outputs of the quantizers, for several threads.
        parts: from a part of the batch, parameters and these outputs to gradients of the outputs, and to all other results.
        behind: from gradients of the outputs to the results that depend on nothing else of the batch, for several threads.
    """

    weights: tuple[QuantizedWeight, ...]
    ahead: Sequence[ir.Model]
    parts: ir.Model
    behind: Sequence[ir.Model]


def note_weights(model: ir.Model, again: Collection[str], fed: Collection[str] = ()) -> None:
    """Leaves in the model where quantizers of weights begin and end; once functions are inlined nobody could tell.

    Args:
        model: a training graph whose quantizers are calls.
        again: names of quantizers' outputs that are computed a second time.
        fed: names of inputs of which there may be gradients though they are no parameters.
    """
    of_batch = _depending(model.graph, _batch(model.graph, fed))
    found: dict[str, QuantizedWeight] = {}
    for node in model.graph:
        if not fakequant.is_gradient(node):
            continue
        dy, x, y = node.inputs[:3]
        assert dy is not None
        assert x is not None
        assert y is not None
        whole = node.outputs[0].name == f"{x.name}{SUFFIX}" and node.outputs[0].is_graph_output()
        if whole and dy in of_batch and not of_batch & {x, *node.inputs[2:]}:
            output = None if y.name in again else str(y.name)
            found.setdefault(str(dy.name), QuantizedWeight(str(x.name), output, str(dy.name)))
    model.meta[_KEY] = tuple(found.values()), tuple(fed)


def borders(model: ir.Model, count: int) -> Borders | None:
    """Finds where the graph is cut, for so many threads; None where no weight is quantized."""
    weights, fed = model.meta.get(_KEY, ((), ()))
    groups = _groups(model.graph, weights, count)
    if not groups:
        return None
    owned = _results(model.graph, weights, fed)
    ahead = ([one.output for one in group if one.output is not None] for group in groups)
    behind = ([name for name, owner in owned.items() if owner in group] for group in groups)
    return Borders(weights, [names for names in ahead if names], list(behind))


def shared(model: ir.Model, count: int) -> Shared | None:
    """The training graph in three, what is shared for so many threads; None where no weight is quantized."""
    found = borders(model, count)
    if found is None:
        return None
    results = [str(value.name) for value in model.graph.outputs]
    return Shared(
        found.weights,
        [cut(model, {}, names) for names in found.ahead],
        cut(model, found.outputs, found.of_parts(results)),
        [cut(model, {**found.outputs, **found.gradients}, names) for names in found.behind],
    )


def _groups(graph: ir.Graph, weights: Sequence[QuantizedWeight], count: int) -> list[list[QuantizedWeight]]:
    """The weights in groups of about equal size."""
    inputs = {value.name: value for value in graph.inputs}
    elements = {one: _size(inputs[one.parameter]) for one in weights}
    groups: list[list[QuantizedWeight]] = [[] for _ in range(min(count, len(weights)))]
    for one in sorted(weights, key=lambda one: -elements[one]):
        min(groups, key=lambda group: sum(elements[member] for member in group)).append(one)
    return groups


def _size(value: ir.Value) -> int:
    assert value.shape is not None
    return math.prod(value.shape.numpy())


def _results(
    graph: ir.Graph, weights: Sequence[QuantizedWeight], fed: Collection[str]
) -> Mapping[str, QuantizedWeight]:
    """Outputs that depend on the batch only through gradients of quantized weights, each with one of these weights."""
    by_name = {one.gradient: one for one in weights}
    cut_at = {value: by_name[value.name] for node in graph for value in node.outputs if value.name in by_name}
    others = _depending(graph, _batch(graph, fed), cut_at)
    found: dict[ir.Value, QuantizedWeight] = dict(cut_at)
    for node in graph:
        owner = next((found[value] for value in node.inputs if value in found), None)
        if owner is not None:
            for value in node.outputs:
                found.setdefault(value, owner)
    return {str(value.name): found[value] for value in graph.outputs if value in found and value not in others}


def _batch(graph: ir.Graph, fed: Collection[str]) -> set[ir.Value]:
    """Inputs that are no parameters: those `fed`, and those without a gradient."""
    results = {value.name for value in graph.outputs}
    return {value for value in graph.inputs if value.name in fed or f"{value.name}{SUFFIX}" not in results}


def _depending(graph: ir.Graph, on: Collection[ir.Value], but: Collection[ir.Value] = ()) -> set[ir.Value]:
    """All values that depend on these, but not by way of those `but`."""
    found = set(on)
    for node in graph:
        if any(value in found for value in (*node.inputs, *captured_values(node))):
            found.update(value for value in node.outputs if value not in but)
    return found
