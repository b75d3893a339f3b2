"""Operators of opsets 7 to 20 in the form that they have in newer ones, up to 21; inside branches and bodies too.

Only what changed its meaning or its inputs is rewritten: other operators merely take more types now. Node and value names stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import UnsupportedModelError
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name
from onnxqat.graph.naming import label, name_of

#: Rewrites a node in place; it may raise UnsupportedModelError with the reason why it cannot.
Adapter = Callable[[ir.Graph, ir.Node], None]


def upgrade_nodes(model: ir.Model, found: int, version: int) -> None:
    """Rewrites, in place, every node whose operator means something else in opset `version` than in opset `found`.

    Raises:
        UnsupportedModelError: a node has no newer form; the message names it.
    """
    for node in list(model.graph.all_nodes()):
        for until, adapter in ADAPTERS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            if found < until <= version:
                adapter(model.graph, node)


def _refuse(node: ir.Node, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{label(node)} {reason}")


def _set_input(node: ir.Node, index: int, value: ir.Value | None) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _constant_input(graph: ir.Graph, node: ir.Node, index: int, role: str, array: Any) -> None:
    """Makes an input of the node a constant; in the main graph, where branches see it too."""
    _set_input(node, index, constant_value(graph, f"{node.outputs[0].name}_{role}", np.asarray(array)))


def _as_inputs(**places: int) -> Adapter:
    """Attributes that are lists of integers, or one integer, become one-dimensional inputs at these places."""

    def adapt(graph: ir.Graph, node: ir.Node) -> None:
        for name, index in places.items():
            attribute = node.attributes.pop(name, None)
            if attribute is not None:
                _constant_input(graph, node, index, name, np.array(attribute.value, np.int64).reshape(-1))

    return adapt


def _clip(graph: ir.Graph, node: ir.Node) -> None:
    for index, name in ((1, "min"), (2, "max")):
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            _constant_input(graph, node, index, name, np.asarray(attribute.value, _float_type(node)))


def _pad(graph: ir.Graph, node: ir.Node) -> None:
    _as_inputs(pads=1)(graph, node)
    fill = node.attributes.pop("value", None)
    if fill is not None and fill.value:
        _constant_input(graph, node, 2, "value", np.asarray(fill.value, _float_type(node)))


def _float_type(node: ir.Node) -> Any:
    data = node.inputs[0]
    return np.float32 if data is None or data.dtype is None else data.dtype.numpy()


def _dropout(graph: ir.Graph, node: ir.Node) -> None:
    """The ratio matters in training only."""
    node.attributes.pop("ratio", None)


def _dropout_of_numbers(graph: ir.Graph, node: ir.Node) -> None:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise _refuse(node, "gives its mask as numbers, which newer opsets do not")


def _batch_normalization(graph: ir.Graph, node: ir.Node) -> None:
    spatial = node.attributes.pop("spatial", None)
    if spatial is not None and not spatial.as_int():
        raise _refuse(node, "normalizes each element by itself (spatial=0), which has no newer form")


def _inference_alone(graph: ir.Graph, node: ir.Node) -> None:
    if any(value.name for value in node.outputs[1:]):  # the runtime trains where they are named, read or not
        raise _refuse(node, "updates its statistics as in training")


def _over_all_axes_behind(graph: ir.Graph, node: ir.Node) -> None:
    """Softmax, LogSoftmax and Hardmax ran over all axes from `axis` on, as if they were one; they run over one now."""
    axis, data, result = node.attributes.get_int("axis", 1), node.inputs[0], node.outputs[0]
    if data is None:
        return
    if data.shape is not None:
        axis += data.shape.rank() if axis < 0 else 0
        behind = list(data.shape)[axis + 1 :]
        if all(size == 1 for size in behind):
            node.attributes["axis"] = ir.AttrInt64("axis", axis if behind else -1)
            return
    owner = node.graph
    assert isinstance(owner, ir.Graph)
    shape = ir.node("Shape", [data])
    matrix = ir.node("Flatten", [data], {"axis": axis})
    node.replace_input_with(0, matrix.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    back = ir.node("Reshape", [result, shape.outputs[0]])
    restored = back.outputs[0]
    restored.type, restored.shape = result.type, result.shape
    result.replace_all_uses_with(restored, replace_graph_outputs=True)
    back.replace_input_with(0, result)
    restored.name, result.name = result.name, fresh_value_name(graph, f"{result.name}_matrix")
    result.shape = None
    for new in (shape, matrix, back):
        new.name = fresh_name(graph, f"{name_of(node)}_{new.op_type}")
        new.outputs[0].name = new.outputs[0].name or fresh_value_name(graph, f"{new.name}_output")
    owner.insert_before(node, [shape, matrix])
    owner.insert_after(node, back)


def _resize(graph: ir.Graph, node: ir.Node) -> None:
    """Upsample, and Resize of opset 10, place samples at i / scale; the nearest is the one below, in shrinking the one above."""
    scales = node.attributes.pop("scales", None)
    if scales is not None:
        _constant_input(graph, node, 1, "scales", np.array(scales.as_floats(), np.float32))
    given = node.inputs[1]
    if node.attributes.get_string("mode", "nearest") == "nearest":
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", _nearest(node, constant(given)))
    node.replace_input_with(1, None)
    _set_input(node, 2, given)
    node.op_type = "Resize"
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")


def _nearest(node: ir.Node, scales: NDArray[Any] | None) -> str:
    if scales is None and node.op_type == "Resize":
        raise _refuse(node, "takes the nearest sample at scales that are computed at run time")
    shrinks = scales is not None and bool((scales < 1).any())
    if shrinks and scales is not None and (scales > 1).any():
        raise _refuse(node, "takes the nearest sample while it shrinks one axis and enlarges another")
    return "ceil" if shrinks else "floor"


def _drop_empty_inputs(graph: ir.Graph, node: ir.Node) -> None:
    """Resize of opset 11 was told by an empty tensor that it goes by the other of scales and sizes."""
    for index in range(1, min(3, len(node.inputs))):
        array = constant(node.inputs[index])
        if array is not None and array.size == 0:
            node.replace_input_with(index, None)


def _scatter(graph: ir.Graph, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _roi_align(graph: ir.Graph, node: ir.Node) -> None:
    node.attributes["coordinate_transformation_mode"] = ir.AttrString(
        "coordinate_transformation_mode", "output_half_pixel"
    )


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Equal parts are asked for by their number."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _grid_sample(graph: ir.Graph, node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    node.attributes["mode"] = ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _scan(graph: ir.Graph, node: ir.Node) -> None:
    raise _refuse(node, "runs over batches, which newer opsets do not")


#: By operator: adapters, each with the opset since which the operator is as it is then.
ADAPTERS: Mapping[str, tuple[tuple[int, Adapter], ...]] = {
    "BatchNormalization": ((9, _batch_normalization), (14, _inference_alone)),
    "Clip": ((11, _clip),),
    "DFT": ((20, _as_inputs(axis=2)),),
    "Dropout": ((10, _dropout_of_numbers), (12, _dropout)),
    "GridSample": ((20, _grid_sample),),
    "Hardmax": ((13, _over_all_axes_behind),),
    "LogSoftmax": ((13, _over_all_axes_behind),),
    "Pad": ((11, _pad),),
    "ReduceSum": ((13, _as_inputs(axes=1)),),
    **dict.fromkeys(
        [f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")],
        ((18, _as_inputs(axes=1)),),
    ),
    "Resize": ((11, _resize), (13, _drop_empty_inputs)),
    "RoiAlign": ((16, _roi_align),),
    "Scan": ((9, _scan),),
    "Scatter": ((11, _scatter),),
    "Slice": ((10, _as_inputs(starts=1, ends=2, axes=3)),),
    "Softmax": ((13, _over_all_axes_behind),),
    "Split": ((13, _as_inputs(split=1)), (18, _split)),
    "Squeeze": ((13, _as_inputs(axes=1)),),
    "TopK": ((10, _as_inputs(k=1)),),
    "Unsqueeze": ((13, _as_inputs(axes=1)),),
    "Upsample": ((10, _resize),),
}
