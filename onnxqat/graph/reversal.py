"""Sequences of no steps, which ONNX Runtime's ReverseSequence leaves out: their rows are whatever the memory held before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name


def reverse_at_least_one_step(graph: ir.Graph) -> None:
    """Lets each ReverseSequence take lengths of 0 for 1: both leave a sequence as it is. Operators of opset 9 do it."""
    for node in [node for node in graph.all_nodes() if node.op_type == "ReverseSequence"]:
        owner, lengths = node.graph, node.inputs[1]
        assert isinstance(owner, ir.Graph)
        zero = constant_value(graph, f"{node.outputs[0].name}_none", np.array(0, np.int64))
        one = constant_value(graph, f"{node.outputs[0].name}_one", np.array(1, np.int64))
        empty = ir.node("Equal", [lengths, zero])
        longer = ir.node("Where", [empty.outputs[0], one, lengths])
        for new in (empty, longer):
            new.name = fresh_name(graph, f"{node.name or node.outputs[0].name}_{new.op_type}")
            new.outputs[0].name = fresh_value_name(graph, f"{new.name}_output")
        owner.insert_before(node, [empty, longer])
        node.replace_input_with(1, longer.outputs[0])
