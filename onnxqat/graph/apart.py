"""Nodes that change no number and keep a runtime from joining what stands on their two sides."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxqat.graph.edit import fresh_name, fresh_value_name


def put_guard(graph: ir.Graph, value: ir.Value, operator: str = "Max", **attributes: float) -> None:
    """Puts a guard between a value and all that reads it; the caller sorts."""
    node = value.producer()
    assert node is not None
    uses = list(value.uses())
    output = guarded(graph, value, node, operator, **attributes)
    for use in uses:
        use.node.replace_input_with(use.idx, output)


def guarded(graph: ir.Graph, value: ir.Value, beside: ir.Node, operator: str = "Max", **attributes: float) -> ir.Value:
    """The value behind a guard that is named after a node which makes or reads it; the caller sorts."""
    guard = ir.node(operator, [value], attributes, name=fresh_name(graph, f"{beside.name}_apart"))
    output = guard.outputs[0]
    output.name, output.type, output.shape = fresh_value_name(graph, str(guard.name)), value.type, value.shape
    graph.append(guard)
    return output


def keep_biases(graph: ir.Graph, layers: Collection[str]) -> None:
    """Keeps the biases of such layers out of the quantizers behind them, in a graph that computes with sizes.

    OpenVINO takes these sizes from the first convolution that has them, in front of its bias. It then adds the bias in the
    quantizer, that of the first channel to all channels (2026.4). A LeakyRelu of slope 1 between the two ends that, and vanishes
    in the kernels of other convolutions.
    """
    nodes = list(graph)
    if not any(node.op_type == "Shape" for node in nodes):
        return
    for node in nodes:
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        if node.op_type in layers and has_bias and _has_quantizer(node.outputs[0]):
            put_guard(graph, node.outputs[0], "LeakyRelu", alpha=1.0)
    graph.sort()


def _has_quantizer(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads the value, or what a Relu or Clip makes of it."""
    users = [user for user, _ in value.uses()]
    bounded = [user.outputs[0] for user in users if user.op_type in ("Relu", "Clip")]
    return any(user.op_type == "QuantizeLinear" for user in users) or any(map(_has_quantizer, bounded))
