"""ONNX Runtime's gradient graph builder: the only calls into it, and the registry of gradients that it keeps per process."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime as ort
from onnxruntime.capi import _pybind_state as ort_state

_SILENT = 4  # ONNX Runtime's log level: what goes wrong is in the exception
_registered: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {}


def build_gradient_graph(model: onnx.ModelProto, loss: str, wrt: Sequence[str]) -> onnx.ModelProto:
    """Returns `model` with one more output `<name>_grad` for each name in `wrt`.

    Args:
        model: a model whose `wrt` names are graph inputs and whose `loss` is a float32 scalar output.
        loss: name of the value that is differentiated.
        wrt: names of inputs on which the loss depends.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    builder = ort_state.GradientGraphBuilder(model.SerializeToString(), {loss}, set(wrt), loss, options)
    builder.build()
    return onnx.load_model_from_string(builder.get_model())


def register_gradient(
    domain: str, op_type: str, gradient: tuple[str, str], inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Tells the builder that the gradient of `domain::op_type` is one call of the function `gradient`.

    The registry belongs to the process: registering the same again does nothing.

    Args:
        domain: domain of the function that gets a gradient.
        op_type: its name.
        gradient: domain and name of the gradient function.
        inputs: arguments of its call: `GO(i)`, the gradient of output i; `I(i)`, input i; `O(i)`, output i.
        outputs: results of its call: `GI(i)`, the gradient of input i.
    """
    key = f"{domain}::{op_type}"
    entry = (*gradient, tuple(inputs), tuple(outputs))
    if _registered.get(key) == entry:
        return
    definition = ort_state.GradientNodeDefinition()
    definition.domain, definition.op_type = gradient
    definition.inputs, definition.outputs = list(inputs), list(outputs)
    definition.attributes = []
    ort_state.register_gradient_definition(key, [definition])
    _registered[key] = entry
