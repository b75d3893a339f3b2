"""Names as the user knows them: in what tf2onnx writes, and of a model's outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir


def rename(graph: ir.Graph, model: str, layers: frozenset[str]) -> None:
    """Names nodes and parameters after Keras's layers, and gives inputs and outputs a batch axis called `batch`.

    TensorFlow numbers a name at its second use and tf2onnx counts up in what it invents: `net_1/conv_1/convolution__62`.

    Args:
        graph: what tf2onnx wrote, changed in place.
        model: name of the model.
        layers: names of its layers; empty where they are not known, which leaves TensorFlow's numbers in place.
    """
    ends = [*graph.inputs, *graph.outputs]
    value_names = {str(value.name) for value in [*ends, *graph.initializers.values()]}
    node_names: set[str] = set()
    for node in graph:
        node.name = free(_node_path(node, model, layers), node_names)
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = free(node.name if index == 0 else f"{node.name}:{index}", value_names)
                # Every free axis has a name of its own there, the batch included.
                value.shape = None
    for value in list(graph.initializers.values()):
        name = _parameter_path(value, model, layers)
        if name != value.name:
            value.name = free(name, value_names)
    for value in ends:
        value.shape = ir.Shape([_axis(value, index, size) for index, size in enumerate(value.shape or ())])


def _parameter_path(value: ir.Value, model: str, layers: frozenset[str]) -> str:
    """`weight` or `bias` under the first node that reads it; TensorFlow's own name for other constants that have one."""
    node, index = next(iter(value.uses()))
    if index in roles(node) or _invented(value):
        return f"{node.name}/{roles(node).get(index, f'constant_{index}')}"
    return layer_path(str(value.name), model, layers)


def _node_path(node: ir.Node, model: str, layers: frozenset[str]) -> str:
    """Path of the layer that made the node; a Conv that absorbed what follows it goes by its weight, not by that."""
    path = layer_path(str(node.name), model, layers)
    weight = node.inputs[1] if 1 in roles(node) else None
    if weight is None or not weight.is_initializer() or _invented(weight):
        return path
    owner, _, _ = layer_path(str(weight.name), model, layers).rpartition("/")
    return owner if owner and owner.partition("/")[0] != path.partition("/")[0] else path


def roles(node: ir.Node) -> dict[int, str]:
    """Roles of a weighted node's parameters by their place among its inputs; none for other nodes."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return {1: "weight", 2: "bias"}
    return {1: "weight", 2: "recurrent_weight", 3: "bias"} if node.op_type in ("LSTM", "GRU", "RNN") else {}


def _invented(value: ir.Value) -> bool:
    return re.search(r"__\d+(:\d+)?$", str(value.name)) is not None


def _axis(value: ir.Value, index: int, size: int | ir.SymbolicDim) -> int | str:
    if isinstance(size, int):
        return size
    return "batch" if index == 0 else f"{value.name}_{index}"


def layer_path(name: str, model: str, layers: frozenset[str]) -> str:
    """Returns a name without the model's own, and without what was appended to the names of layers."""
    parts = re.sub(r"__\d+", "", name).removesuffix(":0").split("/")
    # A SavedModel's layers are called through functions of this name.
    parts = [part for part in parts[:-1] if not part.startswith("StatefulPartitionedCall")] + parts[-1:]
    first, *rest = parts
    numbered = re.fullmatch(rf"{re.escape(model)}_\d+", first) is not None
    if not rest or not (numbered or first == model):
        return "/".join(parts)
    return "/".join(_layer_name(part, layers, numbered=numbered) for part in rest)


def _layer_name(part: str, layers: frozenset[str], *, numbered: bool) -> str:
    # Keras opens each layer's name scope once before it is used: then `dense_1` is the layer `dense`, even where there is
    # a layer `dense_1`, which has become `dense_1_1`.
    plain = re.sub(r"_\d+$", "", part)
    return plain if plain in layers and (numbered or part not in layers) else part


def free(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; it is taken afterwards."""
    number, free = 1, name
    while free in taken:
        number, free = number + 1, f"{name}_{number}"
    taken.add(free)
    return free


def named_outputs(result: Any) -> dict[str, Any]:
    """Names what a model returned: a dict by its keys, others by their place."""
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    if isinstance(result, (tuple, list)):
        return {f"output_{index}": value for index, value in enumerate(result)}
    return {"output": result}
