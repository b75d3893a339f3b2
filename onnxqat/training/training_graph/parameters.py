"""Finds the initializers that are trained, and the place of each in the flat array that holds them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph import external
from onnxqat.graph.constants import constant
from onnxqat.graph.qdq import FIXED_GRID
from onnxqat.training.quantizers import fakequant, round_bias

Kind = Literal["weight", "other", "scale", "zero_point"]

#: Inputs that are weights, by operator; weight decay acts only on them.
_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Gather": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
}
#: Inputs that are biases, or the scale and shift of a normalization.
_OTHERS: Mapping[str, tuple[int, ...]] = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "LSTM": (3,),
    "GRU": (3,),
    "RNN": (3,),
    "PRelu": (1,),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "BatchNormalization": (1, 2),
}
_ALIGNMENT = 16  # floats: each parameter begins on a cache line
_ORDER: tuple[Kind, ...] = ("weight", "other", "scale", "zero_point")


@dataclass(frozen=True)
class Parameter:
    """One trained initializer.

    Attributes:
        name: the initializer's name.
        kind: what it is; decides on weight decay and on the domain of the update.
        offset: where it begins in the flat array.
        shape: its shape.
        bounds: for scales and zero points, the least and the largest value it may take.
        quantized: whether it belongs to a quantizer, or to a layer whose weights have one.
    """

    name: str
    kind: Kind
    offset: int
    shape: tuple[int, ...]
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    quantized: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    def view(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """The parameter's part of a flat array, in its own shape; no copy."""
        return flat[self.offset : self.offset + self.size].reshape(self.shape)


@dataclass(frozen=True)
class Layout:
    """The flat array: weights, then other parameters, scales and zero points.

    Attributes:
        parameters: in order of their offsets.
        bounds: where each kind begins and ends.
        size: length of the flat array.
    """

    parameters: tuple[Parameter, ...]
    bounds: Mapping[Kind, tuple[int, int]]
    size: int

    def named(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Views by name."""
        return {parameter.name: parameter.view(flat) for parameter in self.parameters}


def lay_out(graph: ir.Graph, kinds: Mapping[str, Kind], ends: Mapping[str, tuple[float, float]]) -> Layout:
    """Gives every trained initializer its place."""
    parameters: list[Parameter] = []
    bounds: dict[Kind, tuple[int, int]] = {}
    offset, quantized = 0, _of_quantized_layers(graph)
    for kind in _ORDER:
        start = offset
        for name in (name for name, other in kinds.items() if other == kind):
            tensor = graph.initializers[name].const_value
            assert tensor is not None
            shape = tuple(int(d) for d in tensor.shape.numpy())
            free = (float("-inf"), float("inf"))
            parameters.append(Parameter(name, kind, offset, shape, ends.get(name, free), name in quantized))
            offset += -(-parameters[-1].size // _ALIGNMENT) * _ALIGNMENT
        bounds[kind] = (start, offset)
    return Layout(tuple(parameters), bounds, offset)


def initial_values(graph: ir.Graph, layout: Layout) -> NDArray[np.float32]:
    """The flat array as the model has it; the gaps hold 1, so that every formula is defined on them."""
    flat = np.ones(layout.size, np.float32)
    for parameter in layout.parameters:
        array = constant(graph.initializers[parameter.name])
        assert array is not None
        parameter.view(flat)[...] = array
        external.forget(graph.initializers[parameter.name].const_value)
    return flat


def trainable(graph: ir.Graph, freeze: Sequence[str] = ()) -> dict[str, Kind]:
    """Names and kinds of the initializers to train, in a graph whose quantizers are calls.

    Args:
        graph: the forward graph.
        freeze: names or regular expressions (matching the whole name) of initializers, or of nodes whose parameters, with
            the scales of their quantizers, stay as they are.

    Raises:
        InputError: an entry of `freeze` matches nothing, or nothing is left to train.
    """
    kinds: dict[str, Kind] = {}
    for node in graph:
        for value, kind in _parameters_of(node):
            if value is not None and value.name in graph.initializers and _is_float(value):
                kinds.setdefault(str(value.name), kind)
    for name in _frozen(graph, freeze):
        kinds.pop(name, None)
    if not kinds:
        raise InputError("model: no initializer is left to train; freeze less")
    return kinds


def _parameters_of(node: ir.Node) -> list[tuple[ir.Value | None, Kind]]:
    if fakequant.is_call(node):
        return [] if FIXED_GRID in node.metadata_props else [(node.inputs[1], "scale"), (node.inputs[2], "zero_point")]
    found: list[tuple[ir.Value | None, Kind]] = []
    for table, kind in ((_WEIGHTS, "weight"), (_OTHERS, "other")):
        indices = table.get(node.op_type, ()) if node.domain == "" else ()
        found += [(_behind_quantizer(node.inputs[i]), kind) for i in indices if i < len(node.inputs)]  # type: ignore[misc]
    if node.op_type == "Add" and any(_is_product(value) for value in node.inputs):
        found += [(_behind_quantizer(value), "other") for value in node.inputs]
    return found


def _of_quantized_layers(graph: ir.Graph) -> set[str]:
    return {
        str(value.name)
        for node in graph
        if fakequant.is_call(node) or _has_quantized_weight(node)
        for value, _ in _parameters_of(node)
        if value is not None
    }


def _has_quantized_weight(node: ir.Node | None) -> bool:
    """Whether a weight of the node, or of the product to which it adds a bias, is a quantized initializer."""
    if node is None:
        return False
    if node.op_type == "Add":
        products = [_behind_quantizer(value) for value in node.inputs if _is_product(value)]
        return any(product is not None and _has_quantized_weight(product.producer()) for product in products)
    weights = [node.inputs[i] for i in _WEIGHTS.get(node.op_type, ()) if i < len(node.inputs)]
    calls = [producer for value in weights if value is not None and (producer := value.producer()) is not None]
    return any(fakequant.is_call(call) and constant(call.inputs[0]) is not None for call in calls)


def _behind_quantizer(value: ir.Value | None) -> ir.Value | None:
    producer = None if value is None else value.producer()
    called = producer is not None and (fakequant.is_call(producer) or round_bias.is_call(producer))
    return producer.inputs[0] if producer is not None and called else value


def _is_product(value: ir.Value | None) -> bool:
    before = _behind_quantizer(value)
    producer = None if before is None else before.producer()
    return producer is not None and producer.op_type == "MatMul"


def _is_float(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT and value.const_value.size > 0


def _frozen(graph: ir.Graph, freeze: Iterable[str]) -> set[str]:
    frozen: set[str] = set()
    for pattern in freeze:
        expression = _compiled(pattern)
        nodes = [n for n in graph if n.name and (n.name == pattern or (expression and expression.fullmatch(n.name)))]
        names = [n for n in graph.initializers if n == pattern or (expression and expression.fullmatch(n))]
        if not nodes and not names:
            raise InputError(f"freeze {pattern!r}: no node or initializer has this name or matches it; check the name")
        frozen.update(names)
        for node in nodes:
            for value in node.inputs:
                frozen.update(_constants_behind(value))
    return frozen


def _constants_behind(value: ir.Value | None) -> set[str]:
    """The initializer itself, or data and scale of a quantized one."""
    before = _behind_quantizer(value)
    if value is None or before is None or before.const_value is None:
        return set()
    producer = value.producer()
    if producer is None or not fakequant.is_call(producer) or producer.inputs[1] is None:
        return {str(before.name)}
    return {str(before.name), str(producer.inputs[1].name)}


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None
