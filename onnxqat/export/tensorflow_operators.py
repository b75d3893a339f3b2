"""Operators of TensorFlow that tf2onnx cannot write, written with those of ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: Puts ONNX nodes in the place of a node: of tf2onnx's graph, the node, its name, and arguments that are not used.
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
    kind = tf2onnx_type(graph, node)
    return str(graph.make_const(f"{node.name}/one", np.array(1, kind)).output[0])


def tf2onnx_type(graph: Any, node: Any) -> Any:
    """NumPy type of the node's first input."""
    from tf2onnx import utils

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


#: Handlers by the name of TensorFlow's operator.
HANDLERS: Mapping[str, tuple[Handler, list[Any]]] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
    "PyFunc": (_marked, []),
}
