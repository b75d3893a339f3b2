"""Local rewrites to the operators that runtimes have integer kernels for; each keeps the model's answers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxqat.graph.edit import constant_value
from onnxqat.graph.qdq import constant
from onnxqat.insert.affine import replace_value
from onnxqat.insert.groups import inputs, is_float, sole_user


def drop_inference_noops(graph: ir.Graph) -> None:
    """Removes Dropout, which does nothing outside training."""
    for node in list(graph):
        if node.op_type == "Dropout" and node.inputs[0] is not None and not any(v.uses() for v in node.outputs[1:]):
            identity = ir.node("Identity", [node.inputs[0]], name=node.name)
            identity.outputs[0].name = f"{node.name}_passed"
            identity.outputs[0].type, identity.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            graph.insert_before(node, identity)
            replace_value(node.outputs[0], identity.outputs[0])
            graph.remove(node, safe=True)


def sum_bias_in_gemm(graph: ir.Graph) -> None:
    """MatMul and Add of a constant vector become one Gemm, where the data has rank 2."""
    for node in list(graph):
        user = sole_user(node.outputs[0]) if node.op_type == "MatMul" else None
        if user is None or user.op_type != "Add":
            continue
        data, weight = inputs(node)
        bias = next((v for v in inputs(user) if v is not node.outputs[0]), None)
        array, matrix = constant(bias), constant(weight)
        if (
            bias is None
            or array is None
            or matrix is None
            or matrix.ndim != 2
            or data.shape is None
            or data.shape.rank() != 2
        ):
            continue
        if array.size == matrix.shape[1] and array.ndim <= 2:
            flat = constant_value(graph, f"{bias.name}_vector", array.reshape(-1)) if array.ndim == 2 else bias
            _replace(graph, user, ir.node("Gemm", [data, weight, flat], name=node.name))
            graph.remove(node, safe=True)


def bound_activations(graph: ir.Graph) -> None:
    """Min and Max by scalars become Clip, also behind a Relu: exporters write ReLU6 so."""
    for node in list(graph):
        bounds = _upper_bound(node)
        if bounds is None:
            continue
        data, high = bounds
        above = data.producer()
        low = _lower_bound(above) if above is not None and sole_user(data) is node else None
        if low is None or above is None or low[1] > high:
            continue
        limits = [
            constant_value(graph, f"{node.name}_{k}", np.asarray(v, np.float32))
            for k, v in (("low", low[1]), ("high", high))
        ]
        _replace(graph, node, ir.node("Clip", [low[0], *limits], name=above.name))
        graph.remove(above, safe=True)


def _upper_bound(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(data, bound) of Min(data, scalar) or of a Clip from above only."""
    if node.op_type == "Clip" and node.inputs[0] is not None:
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        high = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        lowest = np.finfo(np.float32).min
        return (node.inputs[0], float(high)) if high is not None and (low is None or float(low) <= lowest) else None
    return _data_and_scalar(node) if node.op_type == "Min" else None


def _lower_bound(node: ir.Node) -> tuple[ir.Value, float] | None:
    if node.op_type == "Relu" and node.inputs[0] is not None:
        return node.inputs[0], 0.0
    return _data_and_scalar(node) if node.op_type == "Max" else None


def _data_and_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    fixed = [v for v in inputs(node) if (array := constant(v)) is not None and array.size == 1]
    data = [v for v in inputs(node) if constant(v) is None]
    if len(fixed) != 1 or len(data) != 1 or not is_float(data[0]):
        return None
    return data[0], float(constant(fixed[0]).item())  # type: ignore[union-attr]


def pool_means(graph: ir.Graph) -> None:
    """ReduceMean over all spatial axes becomes GlobalAveragePool, which runtimes have an integer kernel for.

    Behind a Transpose to channels-last (as Keras writes it) the mean is taken before it.
    """
    for node in list(graph):
        data = node.inputs[0]
        if node.op_type != "ReduceMean" or data is None or not is_float(data) or data.shape is None:
            continue
        rank = data.shape.rank()
        axes = _reduced_axes(node, rank)
        keep = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        source, spatial = data, list(range(2, rank))
        transpose = data.producer()
        if axes == list(range(1, rank - 1)) and transpose is not None and _to_channels_last(transpose, rank):
            if keep:
                continue
            source, axes = transpose.inputs[0], spatial  # type: ignore[assignment]
        if rank < 3 or axes != spatial:
            continue
        pool = ir.node("GlobalAveragePool", [source], name=node.name)
        pool.outputs[0].name = f"{node.name}_pooled"
        pool.outputs[0].type = node.outputs[0].type
        if keep:
            _replace(graph, node, pool)
        else:
            graph.insert_before(node, pool)
            _replace(graph, node, _as_matrix(graph, pool.outputs[0], f"{node.name}_Reshape"))


def flatten_as_reshape(graph: ir.Graph) -> None:
    """Flatten behind the batch axis becomes Reshape, across which ONNX Runtime carries quantizers."""
    for node in list(graph):
        data = node.inputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        if node.op_type == "Flatten" and axis == 1 and data is not None:
            _replace(graph, node, _as_matrix(graph, data, str(node.name)))


def _as_matrix(graph: ir.Graph, data: ir.Value, name: str) -> ir.Node:
    return ir.node("Reshape", [data, constant_value(graph, f"{name}_shape", np.array([0, -1], np.int64))], name=name)


def _reduced_axes(node: ir.Node, rank: int) -> list[int]:
    if "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    else:
        array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = [] if array is None else [int(a) for a in array]
    return sorted(a % rank for a in axes)


def _to_channels_last(node: ir.Node, rank: int) -> bool:
    return node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [0, *range(2, rank), 1]


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Puts `new` in the place of `old`, whose first output it computes."""
    graph.insert_before(old, new)
    result = new.outputs[0]
    result.type, result.shape = old.outputs[0].type, old.outputs[0].shape
    name = old.outputs[0].name
    old.outputs[0].name = f"{name}_replaced"
    result.name = name
    old.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(old, safe=True)
