"""The user's own loss: an ONNX function from the model's outputs and labels to a scalar."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.ops import Ops
from onnxqat.process.foreign import guarded
from onnxqat.training.own import elsewhere
from onnxqat.training.training_graph.loss_inputs import LABEL, extra_input
from onnxqat.training.training_graph.named_losses import known


def call_function(op: Ops, model: ir.Model, loss: Any) -> ir.Value:
    """A call of the user's function: its first inputs are the model's outputs in order, the others are labels."""
    with guarded("loss: cannot be made an ONNX function", "fix the function"):
        proto = loss if isinstance(loss, onnx.FunctionProto) else getattr(loss, "to_function_proto", lambda: None)()
    if not isinstance(proto, onnx.FunctionProto):
        raise InputError(
            f"loss: {type(loss).__name__} is neither a name nor an ONNX function; use one of {known()}{elsewhere(loss)}"
        )
    outputs = list(model.graph.outputs)
    if len(proto.input) < len(outputs) or len(proto.output) != 1:
        raise InputError(
            f"loss function {proto.name!r}: takes {len(proto.input)} inputs and returns {len(proto.output)}; it must take "
            f"the model's {len(outputs)} outputs, then labels, and return one scalar"
        )
    function = ir.serde.deserialize_function(proto)
    types = _label_types(model, proto)
    labels = [extra_input(model.graph, f"{LABEL}{name}", dtype) for name, dtype in types.items()]
    model.functions[function.identifier()] = function
    for domain, version in function.opset_imports.items():
        model.graph.opset_imports.setdefault(domain, version)
    model.graph.opset_imports.setdefault(proto.domain, 1)
    return op.one(proto.name, *outputs, *labels, _domain=proto.domain)


def _label_types(model: ir.Model, proto: onnx.FunctionProto) -> dict[str, ir.DataType]:
    """Float labels where the function's body allows it, int64 otherwise."""
    names = list(proto.input)[len(model.graph.outputs) :]
    for dtype in (ir.DataType.FLOAT, ir.DataType.INT64):
        if _type_checks(model, proto, len(names), dtype):
            return dict.fromkeys(names, dtype)
    raise InputError(
        f"loss function {proto.name!r}: does not type-check on the model's outputs, neither with float nor with int64 labels"
    )


def _type_checks(model: ir.Model, proto: onnx.FunctionProto, labels: int, dtype: ir.DataType) -> bool:
    types = [onnx.helper.make_tensor_type_proto(int(o.dtype or 1), None) for o in model.graph.outputs]
    types += [onnx.helper.make_tensor_type_proto(int(dtype), None)] * labels
    try:
        onnx.shape_inference.infer_function_output_types(proto, types, [])
    except onnx.shape_inference.InferenceError:
        return False
    return True
