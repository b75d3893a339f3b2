"""From a function of TensorFlow to a graph of ONNX, by tf2onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from onnxqat.export.tensorflow_operators import HANDLERS

Call = Callable[[Sequence[tf.Tensor]], Mapping[str, tf.Tensor]]


def converted(call: Call, inputs: Sequence[tf.TensorSpec], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    """Traces a function and writes it as ONNX, with its outputs in the given order.

    Keras's own `model.export(format="onnx")` runs tf2onnx as well, but writes to a file, loses the outputs' names and
    reads no SavedModel.
    """
    proto: onnx.ModelProto
    proto, _ = tf2onnx.convert.from_function(
        _without_calls(call, inputs), inputs, opset=opset, custom_op_handlers=dict(HANDLERS)
    )
    # It sorts them by name.
    by_name = {value.name: value for value in proto.graph.output}
    del proto.graph.output[:]
    proto.graph.output.extend(by_name[name] for name in outputs)
    return proto


def _without_calls(call: Call, inputs: Sequence[tf.TensorSpec]) -> tf.types.experimental.GenericFunction:
    """The function with its variables, and the tensors that it captures, as constants, and its compiled parts as plain ones.

    tf2onnx makes an input of every tensor that a function captures: the mean that Normalization was adapted to. It
    inlines no function that is to be compiled by XLA, as Keras has it for grouped convolutions on the CPU.
    """
    traced = tf.function(lambda *given: call(given), input_signature=inputs).get_concrete_function()
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False, aggressive_inlining=True)
    names = dict(zip(traced.structured_outputs, (value.name for value in frozen.outputs), strict=True))
    placeholders = [value.name for value in frozen.inputs]
    graph = frozen.graph.as_graph_def()
    for function in graph.library.function:
        function.attr.pop("_XlaMustCompile", None)
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            node.attr.pop("_XlaMustCompile", None)
    # What maps to an input goes, or the input would get another name beside it.
    kept = [node for node in graph.node if f"{node.name}:0" not in placeholders]
    del graph.node[:]
    graph.node.extend(kept)

    def imported(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        found = tf.graph_util.import_graph_def(
            graph, dict(zip(placeholders, given, strict=True)), list(names.values()), name=""
        )
        return dict(zip(names, found, strict=True))

    return tf.function(imported, input_signature=inputs)
