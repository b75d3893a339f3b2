"""Local rewrites to the operators that runtimes have integer kernels for; each keeps the model's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxqat.config_parts import ORIGINAL_TYPE
from onnxqat.graph.biases import masks
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_value_name, replace_value, sole_user
from onnxqat.insertion.groups import inputs, is_float


def drop_inference_noops(graph: ir.Graph) -> None:
    """Dropout, which does nothing outside training, becomes Identity, as does a Cast to the type that a value has."""
    for node in list(graph):
        if node.inputs and node.inputs[0] is not None and _does_nothing(node):
            identity = ir.node("Identity", [node.inputs[0]], name=node.name)
            identity.outputs[0].name = fresh_value_name(graph, f"{node.name}_passed")
            identity.outputs[0].type, identity.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            graph.insert_before(node, identity)
            replace_value(graph, node.outputs[0], identity.outputs[0])
            graph.remove(node, safe=True)


def _does_nothing(node: ir.Node) -> bool:
    if node.op_type != "Dropout" or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    training = constant(node.inputs[2]) if given(node, 2) else np.False_
    return training is not None and not training.any()


def sum_bias_in_gemm(graph: ir.Graph) -> None:
    """MatMul and Add of a constant vector become one Gemm, where the data has rank 2."""
    for node in list(graph):
        user = sole_user(node.outputs[0]) if node.op_type == "MatMul" else None
        if user is None or user.op_type != "Add":
            continue
        data, weight = inputs(node)
        bias = next((v for v in inputs(user) if v is not node.outputs[0]), None)
        array, matrix = constant(bias), constant(weight)
        if bias is None or array is None or matrix is None or not (_is_matrix(data) and is_float(data)):
            continue
        # [N] or [1, N]; [N, 1] would run along the rows
        if matrix.ndim == 2 and array.shape in ((matrix.shape[1],), (1, matrix.shape[1])) and not masks(array):
            flat = constant_value(graph, f"{bias.name}_vector", array.reshape(-1)) if array.ndim == 2 else bias
            put_in_place(graph, user, ir.node("Gemm", [data, weight, flat], name=node.name), node.op_type)
            graph.remove(node, safe=True)


def zero_bias_in_gemm(graph: ir.Graph) -> None:
    """MatMul of two matrices without a bias becomes a Gemm with a bias of zeros, which kernels add at no cost."""
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        (data, weight), user = inputs(node), sole_user(node.outputs[0])
        matrix = constant(weight)
        has_bias = user is not None and user.op_type == "Add" and any(constant(v) is not None for v in inputs(user))
        if matrix is None or matrix.ndim != 2 or has_bias or not (_is_matrix(data) and is_float(data)):
            continue
        bias = constant_value(graph, f"{node.name}_bias", np.zeros(matrix.shape[1], matrix.dtype))
        put_in_place(graph, node, ir.node("Gemm", [data, weight, bias], name=node.name))


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 2


def given(node: ir.Node, index: int) -> bool:
    """Whether the node has an input at that place."""
    return len(node.inputs) > index and node.inputs[index] is not None


def pool_means(graph: ir.Graph) -> None:
    """ReduceMean over all spatial axes becomes GlobalAveragePool, which runtimes have an integer kernel for.

    Behind a Transpose to channels-last (as Keras writes it) the mean is taken before it.
    """
    for node in list(graph):
        data = node.inputs[0] if node.inputs else None
        if node.op_type != "ReduceMean" or data is None or not is_float(data) or data.shape is None:
            continue
        rank = data.shape.rank()
        axes = _reduced_axes(node, rank)
        keep = node.attributes.get_int("keepdims", 1) == 1
        transpose = data.producer()
        source, last = data, False
        if axes == list(range(1, rank - 1)) and transpose is not None and _to_channels_last(transpose, rank):
            assert transpose.inputs[0] is not None
            source, last = transpose.inputs[0], True
        elif axes != list(range(2, rank)):
            continue
        if rank < 3:
            continue
        pool = ir.node("GlobalAveragePool", [source], name=node.name)
        if keep and not last:
            put_in_place(graph, node, pool)
            continue
        pool.outputs[0].name = fresh_value_name(graph, f"{node.name}_pooled")
        pool.outputs[0].type = node.outputs[0].type
        pool.metadata_props[ORIGINAL_TYPE] = node.op_type
        graph.insert_before(node, pool)
        if keep:
            perm = ir.AttrInt64s("perm", [0, *range(2, rank), 1])
            put_in_place(
                graph, node, ir.Node("", "Transpose", [pool.outputs[0]], [perm], name=f"{node.name}_Transpose")
            )
        else:
            put_in_place(graph, node, _as_matrix(graph, pool.outputs[0], f"{node.name}_Reshape"))


def flatten_as_reshape(graph: ir.Graph) -> None:
    """Flatten behind the batch axis becomes Reshape, across which ONNX Runtime carries quantizers."""
    for node in list(graph):
        if node.op_type != "Flatten":
            continue
        data, axis = node.inputs[0], node.attributes.get_int("axis", 1)
        if data is not None and axis < 0 and data.shape is not None:
            axis += data.shape.rank()
        if axis == 1 and data is not None and not _is_empty(data):
            put_in_place(graph, node, _as_matrix(graph, data, str(node.name)))


def _is_empty(value: ir.Value) -> bool:
    """Whether an axis has size 0, for which Reshape cannot work out -1."""
    return value.shape is not None and any(size == 0 for size in value.shape)


def merge_pads(graph: ir.Graph) -> None:
    """A Pad with zeros in front of a Conv, or with the lowest number in front of a MaxPool, goes into the pads of that node.

    There it needs no kernel of its own, and its fill is no part of any range.
    """
    for node in list(graph):
        found = _spatial_pads(node) if node.op_type == "Pad" else None
        uses = list(node.outputs[0].uses())
        if found is None or node.outputs[0].is_graph_output() or not uses:
            continue
        pads, fill = found
        if not all(use.idx == 0 and _takes_pads(use.node, pads, fill) for use in uses):
            continue
        for use in uses:
            use.node.attributes["pads"] = ir.AttrInt64s("pads", _with_own(use.node, pads))
            use.node.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)


def _takes_pads(node: ir.Node, pads: list[int], fill: float) -> bool:
    """Whether the node's own padding is of that fill; a window of MaxPool must not lie in the padding as a whole."""
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    if node.op_type == "Conv":
        return fill == 0.0
    kernel = node.attributes.get_ints("kernel_shape") if node.op_type == "MaxPool" else None
    if not kernel or fill > np.finfo(np.float32).min or node.attributes.get_int("ceil_mode", 0) == 1:
        return False
    plain = not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    return plain and all(pad < size for pad, size in zip(_with_own(node, pads), [*kernel, *kernel], strict=True))


def _with_own(node: ir.Node, pads: list[int]) -> list[int]:
    own = node.attributes.get_ints("pads") or [0] * len(pads)
    return [int(a) + int(b) for a, b in zip(own, pads, strict=True)]


def _spatial_pads(node: ir.Node) -> tuple[list[int], float] | None:
    """Begins, then ends of the spatial axes (ONNX Conv's `pads`), and the fill; None if it pads otherwise."""
    data = node.inputs[0]
    if data is None or data.shape is None or node.attributes.get_string("mode", "constant") != "constant":
        return None
    fill = constant(node.inputs[2]) if given(node, 2) else np.float32(0)
    amounts, rank = constant(node.inputs[1]), data.shape.rank()
    axes = constant(node.inputs[3]) if given(node, 3) else np.arange(rank)
    if fill is None or amounts is None or axes is None:
        return None
    begins, ends = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    begins[axes], ends[axes] = np.split(amounts, 2)
    if begins.min() < 0 or ends.min() < 0 or begins[:2].any() or ends[:2].any():
        return None
    return [*begins[2:].tolist(), *ends[2:].tolist()], float(np.asarray(fill).item())


def _as_matrix(graph: ir.Graph, data: ir.Value, name: str) -> ir.Node:
    return ir.node("Reshape", [data, constant_value(graph, f"{name}_shape", np.array([0, -1], np.int64))], name=name)


def _reduced_axes(node: ir.Node, rank: int) -> list[int]:
    axes: Sequence[int] | None = node.attributes.get_ints("axes")
    if axes is None:
        array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if array is None else array.tolist()
    return sorted(a % rank for a in axes)


def _to_channels_last(node: ir.Node, rank: int) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm") or ()) == [0, *range(2, rank), 1]


def put_in_place(graph: ir.Graph, old: ir.Node, new: ir.Node, original: str | None = None) -> None:
    """Replaces `old` by `new`, which computes its first output.

    Rules of the configuration still find it by the operator that the user's model had, `original` or that of `old`.
    """
    new.metadata_props[ORIGINAL_TYPE] = original or old.op_type
    graph.insert_before(old, new)
    result = new.outputs[0]
    result.type, result.shape = old.outputs[0].type, old.outputs[0].shape
    name = old.outputs[0].name
    old.outputs[0].name = f"{name}_replaced"
    result.name = name
    old.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(old, safe=True)
