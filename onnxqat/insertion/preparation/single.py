"""Functions that exporters write as several nodes, as the one node that some runtimes take them as: Gelu, LayerNormalization.

What the nodes compute is compared with the function, number by number, before they are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.config_parts import ORIGINAL_TYPE
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, forget_names, fresh_value_name, replace_value
from onnxqat.graph.opsets import upgraded
from onnxqat.graph.subgraph import between, read, subgraph
from onnxqat.graph.types import infer
from onnxqat.insertion.groups import inputs, is_float
from onnxqat.insertion.patterns.decomposed import Whole, find_wholes
from onnxqat.runtime import Inference

Floats = NDArray[np.float32]

#: Opset in which each function is an operator.
_FIRST_OPSET = {"Gelu": 20, "LayerNormalization": 17}
_TOLERANCE = 1e-4
_BATCH = 2


def with_single_nodes(model: ir.Model, single: frozenset[str]) -> ir.Model:
    """The model with these functions as one node each, in an opset that has it where it can be converted to one."""
    names = {whole.name for whole in find_wholes(model.graph).values()} & single
    if not names:
        return model
    opset = max(io.opset(model), *(_FIRST_OPSET[name] for name in names))
    if opset > io.opset(model):
        try:
            model = upgraded(model, opset)
        except InputError:
            return model
    for whole in dict.fromkeys(find_wholes(model.graph).values()):
        node = _WRITERS[whole.name](model, whole) if whole.name in names else None
        if node is not None:
            _put(model.graph, whole, node)
    forget_names(model.graph)
    infer(model)
    return model


def _gelu_node(model: ir.Model, whole: Whole) -> ir.Node | None:
    rank = 1 if whole.reads.shape is None else max(whole.reads.shape.rank(), 1)
    x = np.linspace(-8, 8, 1025, dtype=np.float32).reshape([1] * (rank - 1) + [-1])
    exact = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))  # x · Φ(x), Hendrycks and Gimpel 2016
    approximate = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # ibid.
    for form, wanted in (("none", exact), ("tanh", approximate)):
        if _computes(model, whole, x, wanted):
            return ir.node("Gelu", [whole.reads], {"approximate": form})
    return None


def _normalization_node(model: ir.Model, whole: Whole) -> ir.Node | None:
    """Normalization over the last axis, with the scale and shift of one number each channel (Ba et al. 2016)."""
    shape = whole.reads.shape
    channels = None if shape is None or not shape.rank() else shape[-1]
    if shape is None or not isinstance(channels, int):
        return None
    held = [(node.op_type, a) for node in whole.nodes for v in inputs(node) if (a := constant(v)) is not None]
    epsilon = next((float(a.item()) for kind, a in held if kind == "Add" and a.size == 1 and 0 < a.item() < 1e-2), None)
    scale, shift = (_of_channels(held, kind, channels) for kind in ("Mul", "Add"))
    if epsilon is None or scale is None:
        return None
    x = np.random.default_rng(0).normal(1, 2, [_BATCH] * (shape.rank() - 1) + [channels]).astype(np.float32)
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    wanted = (x - x.mean(axis=-1, keepdims=True)) / deviation * scale + (0 if shift is None else shift)
    if not _computes(model, whole, x, wanted):
        return None
    operands = [("scale", scale), *([] if shift is None else [("shift", shift)])]
    values = [constant_value(model.graph, f"{whole.writes.name}_{name}", array) for name, array in operands]
    return ir.node("LayerNormalization", [whole.reads, *values], {"axis": -1, "epsilon": epsilon})


def _of_channels(held: list[tuple[str, Floats]], kind: str, channels: int) -> Floats | None:
    """The one constant operand of such a node that has a number for each channel."""
    found = [array.reshape(-1) for op_type, array in held if op_type == kind and array.shape[-1:] == (channels,)]
    return found[0] if len(found) == 1 and found[0].size == channels else None


def _computes(model: ir.Model, whole: Whole, x: Floats, wanted: NDArray[np.floating]) -> bool:
    """Whether the nodes compute these numbers from x, and from nothing else that is computed but sizes of the model's inputs."""
    nodes = between(model.graph, {whole.reads}, [whole.writes])
    if any(is_float(value) for node in nodes if node not in whole.nodes for value in node.outputs):
        return False
    known = {whole.reads, *(value for node in nodes for value in node.outputs)}
    sized = dict.fromkeys(v for node in nodes for v in read(node) if v not in known and v.is_graph_input())
    if any(value.dtype is None or value.shape is None for value in sized):
        return False
    proto = io.to_proto(subgraph(model, nodes, [whole.reads, *sized], [whole.writes]))
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = next(iter(Inference(proto)({str(whole.reads.name): x, **dict(map(_zeros, sized))}).values()))
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() < _TOLERANCE)


def _zeros(value: ir.Value) -> tuple[str, NDArray[np.generic]]:
    """Name and zeros of a value; free sizes are that of the batch on which functions are compared."""
    assert value.dtype is not None
    assert value.shape is not None
    sizes = [size if isinstance(size, int) else _BATCH for size in value.shape]
    return str(value.name), np.zeros(sizes, value.dtype.numpy())


def _put(graph: ir.Graph, whole: Whole, node: ir.Node) -> None:
    last, result = whole.writes.producer(), node.outputs[0]
    assert last is not None
    node.name, node.metadata_props[ORIGINAL_TYPE] = last.name, last.op_type
    result.name = fresh_value_name(graph, f"{whole.writes.name}_{whole.name}")
    result.type, result.shape = whole.writes.type, whole.writes.shape
    graph.insert_before(last, node)
    replace_value(graph, whole.writes, result)
    graph.remove(whole.nodes, safe=True)


_WRITERS: Mapping[str, Callable[[ir.Model, Whole], ir.Node | None]] = {
    "Gelu": _gelu_node,
    "LayerNormalization": _normalization_node,
}
