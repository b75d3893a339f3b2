"""Loops over time in gradient formulas: ONNX's Scan, with a body written like any other formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxqat.graph.ops import Ops

Values: TypeAlias = Sequence[ir.Value]
#: From (states, this step's slices) to (states, this step's results).
Body: TypeAlias = Callable[[Ops, Values, Values], tuple[Values, Values]]
_RANK = 2  # of states, and of what a step reads and gives


def scan(op: Ops, body: Body, states: Values, sequences: Values, *, backwards: bool = False) -> tuple[Values, Values]:
    """Runs `body` over the first axis of the sequences.

    Args:
        op: where the loop is written.
        body: one step; it may use values from outside.
        states: matrices that the first step starts from.
        sequences: matrices, stacked along axis 0. Results of a step are matrices too.
        backwards: from the last step to the first; results are in the order of the sequences all the same.

    Returns:
        The states after the last step, and the results of all steps, stacked along axis 0.
    """
    step = Ops(op.opset)
    formals = [ir.Value(name=f"step_in{i}", type=value.type) for i, value in enumerate((*states, *sequences))]
    after, results = body(step, formals[: len(states)], formals[len(states) :])
    outputs: list[ir.Value] = []
    for value in (*after, *results):  # each must be a value of its own that a node of the body computes
        outputs.append(value if value.producer() in step.nodes and value not in outputs else step.Identity(value))
    for value in outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape([None] * _RANK)  # ONNX Runtime wants to know the rank where it cannot infer it
    for number, value in enumerate(value for node in step.nodes for value in node.outputs):
        value.name = f"step_{number}"  # names outside are given later and begin otherwise
    graph = ir.Graph(formals, outputs, nodes=step.nodes, opset_imports={"": op.opset}, name="step")
    values = op.many(
        "Scan",
        *states,
        *sequences,
        _outputs=len(outputs),
        body=graph,
        num_scan_inputs=len(sequences),
        scan_input_directions=[int(backwards)] * len(sequences),
        scan_output_directions=[int(backwards)] * len(results),
    )
    for value, inner in zip(values, outputs, strict=True):
        value.type = inner.type
    return values[: len(states)], values[len(states) :]
