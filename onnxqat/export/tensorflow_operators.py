"""Operators of TensorFlow that tf2onnx cannot write, written with those of ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from numpy.typing import NDArray
from tf2onnx import utils
from tf2onnx.onnx_opset.nn import ConvOp

#: Puts ONNX nodes in the place of a node, or leaves it, which refuses it by name: of tf2onnx's graph, the node, its name, and
#: arguments that are not used.
Handler = Callable[[Any, Any, str, list[Any]], None]

#: Begins the token of a PyFunc that stands for an ONNX node; JSON follows, of its operator and attributes.
MARK = "onnxqat:"


def _replace(graph: Any, node: Any, operator: str, inputs: list[str], **attributes: Any) -> None:
    """Puts an ONNX node in the place of the node, under its name and with its outputs."""
    outputs, shapes, dtypes = list(node.output), node.output_shapes, node.output_dtypes
    name = node.name
    graph.remove_node(name)
    graph.make_node(operator, inputs, outputs=outputs, name=name, shapes=shapes, dtypes=dtypes, attr=attributes)


def _one(graph: Any, node: Any) -> str:
    kind = _type(graph, node)
    return str(graph.make_const(f"{node.name}/one", np.array(1, kind)).output[0])


def _type(graph: Any, node: Any) -> Any:
    """NumPy type of the node's first input."""
    return utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0]))


def _erfc(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """erfc(x) = 1 - erf(x)."""
    erf = graph.make_node("Erf", [node.input[0]], name=f"{node.name}/Erf", dtypes=[graph.get_dtype(node.input[0])])
    _replace(graph, node, "Sub", [_one(graph, node), erf.output[0]])


def _expm1(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """expm1(x) = exp(x) - 1; near 0 it is off by an absolute 1e-7."""
    power = graph.make_node("Exp", [node.input[0]], name=f"{node.name}/Exp", dtypes=[graph.get_dtype(node.input[0])])
    _replace(graph, node, "Sub", [power.output[0], _one(graph, node)])


def _marked(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """The ONNX node that a PyFunc stands for; another PyFunc stays, and is refused by name."""
    token = node.get_attr_str("token")
    if token.startswith(MARK):
        asked = json.loads(token.removeprefix(MARK))
        inputs = iter(node.input)
        given = [next(inputs) if present else "" for present in asked["inputs"]]
        _replace(graph, node, asked["operator"], given, **asked["attributes"])


def _bucketize(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """Number of the boundaries that are not above the input."""
    kind = graph.get_dtype(node.input[0])
    bounds = graph.make_const(
        f"{node.name}/boundaries", np.array(node.get_attr_value("boundaries"), _type(graph, node))
    )
    last = graph.make_const(f"{node.name}/axis", np.array([-1], np.int64)).output[0]
    wide = graph.make_node("Unsqueeze", [node.input[0], last], dtypes=[kind])
    above = graph.make_node("GreaterOrEqual", [wide.output[0], bounds.output[0]], dtypes=[onnx.TensorProto.BOOL])
    counted = graph.make_node(
        "Cast", above.output, attr={"to": onnx.TensorProto.INT32}, dtypes=[onnx.TensorProto.INT32]
    )
    _replace(graph, node, "ReduceSum", [counted.output[0], last], keepdims=0)


def _spectrum(wave: Callable[[NDArray[Any]], NDArray[Any]]) -> Handler:
    """Real or imaginary part of an RFFT of known length, as a product with cosines or sines; another stays, and is refused."""

    def handler(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
        transform = node.inputs[0]
        shape = graph.get_shape(transform.input[0]) if transform.type == "RFFT" else None
        if not shape or shape[-1] < 1 or not transform.inputs[1].is_const():
            return
        size = shape[-1]
        if transform.inputs[1].get_tensor_value() == [size]:
            waves = wave(2 * np.pi / size * np.outer(np.arange(size), np.arange(size // 2 + 1)))
            matrix = graph.make_const(f"{node.name}/waves", waves.astype(np.float32))
            _replace(graph, node, "MatMul", [transform.input[0], matrix.output[0]])

    return handler


def _left_alone(_graph: Any, _node: Any, _name: str, _arguments: list[Any]) -> None:
    """Leaves what tf2onnx would write incorrectly; the operator is refused by name then, if anything still reads it."""


def _conv3d(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """Writes a convolution with its groups, which tf2onnx 1.17 reads of those of one and two axes only."""
    axis = 1 if node.get_attr_str("data_format") == "NCDHW" else -1
    channels, held = graph.get_shape(node.input[0])[axis], graph.get_shape(node.input[1])[-2]
    ConvOp.any_version(graph.opset, graph, node)
    node.set_attr("group", channels // held)


def _resize(graph: Any, node: Any, _name: str, _arguments: list[Any]) -> None:
    """Writes a resize of known sizes as two products with constants: it is linear, and separable.

    ONNX has no resize by area, and ONNX Runtime 1.19 loads no cubic one between the transposes of channels last.
    """
    shape, wanted = graph.get_shape(node.input[0]), node.inputs[1]
    if not shape or min(shape[1:]) < 1 or not wanted.is_const():
        return
    _, height, width, channels = shape
    rows, columns = wanted.get_tensor_value()
    options = {
        key: bool(node.get_attr_value(key)) for key in ("align_corners", "half_pixel_centers") if key in node.attr
    }

    def weights(old: int, new: int) -> str:
        basis = np.eye(old, dtype=np.float32)[np.newaxis, :, np.newaxis]
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            resized = getattr(tf.raw_ops, node.type)(images=basis, size=[new, 1], **options)
            found = session.run(resized)[0, :, 0]
        return str(graph.make_const(utils.make_name(f"{node.name}/weights"), found).output[0])

    def reshaped(value: str, sizes: list[int]) -> str:
        target = graph.make_const(utils.make_name(f"{node.name}/shape"), np.array([0, *sizes], np.int64)).output[0]
        return str(graph.make_node("Reshape", [value, target]).output[0])

    flat = reshaped(node.input[0], [height, width * channels])
    tall = graph.make_node("MatMul", [weights(height, rows), flat]).output[0]
    _replace(graph, node, "MatMul", [weights(width, columns), reshaped(tall, [rows, width, channels])])


#: Handlers by the name of TensorFlow's operator.
HANDLERS: Mapping[str, tuple[Handler, list[Any]]] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
    "Bucketize": (_bucketize, []),
    "RFFT": (_left_alone, []),
    "Real": (_spectrum(np.cos), []),
    "Imag": (_spectrum(lambda angles: -np.sin(angles)), []),
    "Conv3D": (_conv3d, []),
    "ResizeArea": (_resize, []),
    "ResizeBicubic": (_resize, []),
    "PyFunc": (_marked, []),
}
