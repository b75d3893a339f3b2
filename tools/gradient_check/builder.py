"""ONNX Runtime's gradient graph builder, which the training wheel has: an oracle for gradients of common networks."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime as ort
from onnxruntime.capi import _pybind_state as ort_state

_SILENT = 4  # ONNX Runtime's log level: what goes wrong is in the exception


def gradient_graph(model: onnx.ModelProto, loss: str, wrt: Sequence[str]) -> onnx.ModelProto:
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
