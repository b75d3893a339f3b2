"""From a function of TensorFlow to a graph of ONNX, by tf2onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.grappler import tf_optimizer

from onnxqat.export.tensorflow_operators import HANDLERS

Call = Callable[[Sequence[tf.Tensor]], Mapping[str, tf.Tensor]]


def converted(call: Call, inputs: Sequence[tf.TensorSpec], outputs: Sequence[str], opset: int) -> onnx.ModelProto:
    """Traces a function and writes it as ONNX, with its outputs in the given order.

    Keras's own `model.export(format="onnx")` runs tf2onnx as well, but writes to a file, loses the outputs' names and
    reads no SavedModel. `tf2onnx.convert.from_function` makes an input of every tensor that the function captures, such as
    the mean that Normalization was adapted to.
    """
    traced = tf.function(lambda *given: call(given), input_signature=inputs).get_concrete_function()
    # Behind the inputs there is what the function captures: variables, tensors, tables.
    placeholders = [value.name for value in traced.inputs[: len(inputs)]]
    # TensorFlow flattens a dict by the order of its keys.
    results = dict(zip(sorted(traced.structured_outputs), (value.name for value in traced.outputs), strict=True))
    graph = tf2onnx.tf_loader.from_function(traced, placeholders, list(results.values()))
    _check_tables(graph)
    graph = _inlined(graph, [*placeholders, *results.values()])
    _cancel_reversals(graph)
    proto: onnx.ModelProto
    proto, _ = tf2onnx.convert.from_graph_def(
        graph,
        input_names=placeholders,
        output_names=[results[name] for name in outputs],
        opset=opset,
        custom_op_handlers=dict(HANDLERS),
        tensors_to_rename={
            **{name: spec.name for name, spec in zip(placeholders, inputs, strict=True)},
            **{result: name for name, result in results.items()},
        },
    )
    return proto


def _inlined(graph: tf.compat.v1.GraphDef, ends: Sequence[str]) -> tf.compat.v1.GraphDef:
    """Inlines functions that XLA is to compile, as Keras has it for grouped convolutions; others are inlined by now."""
    functions = [f for field, library in graph.ListFields() if field.name == "library" for f in library.function]
    holders = (*functions, *graph.node, *(node for function in functions for node in function.node_def))
    compiled = [h for h in holders if "_XlaMustCompile" in h.attr and h.attr["_XlaMustCompile"].b]
    if not compiled:
        return graph
    for holder in compiled:
        del holder.attr["_XlaMustCompile"]
    config = config_pb2.ConfigProto()
    rewriting = config.graph_options.rewrite_options
    rewriting.optimizers[:] = ["function"]
    rewriting.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    rewriting.min_graph_nodes = -1  # otherwise graphs of few nodes stay as they are
    with tf.Graph().as_default():
        tf.import_graph_def(graph, name="")
        whole = tf.compat.v1.train.export_meta_graph(graph_def=graph)
    whole.collection_def["train_op"].node_list.value.extend(ends)
    return tf_optimizer.OptimizeGraph(config, whole)


def _check_tables(graph: tf.compat.v1.GraphDef) -> None:
    tables = {node.name for node in graph.node if node.op == "Placeholder" and node.attr["dtype"].type == tf.resource}
    for node in graph.node:
        if tables.intersection(node.input):
            raise ValueError(f"{node.op} of '{node.name}' reads a table, which ONNX does not have")


def _cancel_reversals(graph: tf.compat.v1.GraphDef) -> None:
    """Removes reversals of what is reversed already, as Bidirectional makes them of its backward layer's outputs."""
    nodes = {node.name: node for node in graph.node}
    reversals = {node.name: node for node in graph.node if node.op == "ReverseV2"}

    def axes(node: tf.compat.v1.NodeDef) -> bytes:
        constant = nodes[node.input[1].partition(":")[0]]
        return bytes(
            constant.attr["value"].tensor.SerializeToString() if constant.op == "Const" else constant.name.encode()
        )

    direct = {
        name: inner.input[0]
        for name, outer in reversals.items()
        if (inner := reversals.get(outer.input[0].partition(":")[0])) is not None and axes(inner) == axes(outer)
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = direct.get(name, name)
