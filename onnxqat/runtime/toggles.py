"""A Q/DQ model whose quantizers an input switches on one by one: one session measures what each of them costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.graph import io
from onnxqat.graph.edit import fresh_name, fresh_value_name, replace_value
from onnxqat.graph.qdq import Quantizer, quantizers
from onnxqat.runtime import Inference

Array = NDArray[Any]


class Toggles:
    """A Q/DQ model that runs with the quantizers of chosen values on, and all others off.

    Args:
        model: the Q/DQ model; it is not changed.

    Attributes:
        names: names of the quantized values, in order of execution.
    """

    def __init__(self, model: ir.Model) -> None:
        switched = io.load(model)
        graph = switched.graph
        self._flags: dict[str, list[str]] = {}
        for number, quantizer in enumerate([q for q in quantizers(switched) if q.quantize is not None]):
            flag = ir.Value(name=fresh_value_name(graph, f"onnxqat_on_{number}"), type=ir.TensorType(ir.DataType.BOOL))
            flag.shape = ir.Shape([])
            graph.inputs.append(flag)
            self._flags.setdefault(str(quantizer.source.name), []).append(str(flag.name))
            _switch(graph, quantizer, flag)
        passes.RemoveUnusedNodesPass()(switched)
        self.names = list(self._flags)
        self._off = {flag: np.zeros((), np.bool_) for flags in self._flags.values() for flag in flags}
        self._run = Inference(switched)

    def __call__(self, on: Collection[str], batch: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of a batch by name, with the quantizers of these values on."""
        flags = {flag: np.ones((), np.bool_) for name in on for flag in self._flags[name]}
        return self._run({**batch, **self._off, **flags})


def _switch(graph: ir.Graph, quantizer: Quantizer, flag: ir.Value) -> None:
    """Puts a quantizer into a branch, which runs only where the flag is set; the other one passes the value on."""
    source, last = quantizer.source, quantizer.nodes[-1]
    taken = ir.node(
        "If", [flag], {"then_branch": _graph(_copies(quantizer)), "else_branch": _graph([_passing(source)])}
    )
    taken.name = fresh_name(graph, "onnxqat_switch")
    taken.outputs[0].name = fresh_value_name(graph, f"{quantizer.output.name}_switched")
    taken.outputs[0].type, taken.outputs[0].shape = quantizer.output.type, quantizer.output.shape
    graph.insert_after(last, [taken])
    replace_value(graph, quantizer.output, taken.outputs[0])


def _copies(quantizer: Quantizer) -> Sequence[ir.Node]:
    copies: list[ir.Node] = []
    value = quantizer.source
    for node in quantizer.nodes:
        copy = ir.Node("", node.op_type, [value, *node.inputs[1:]], list(node.attributes.values()), num_outputs=1)
        copy.outputs[0].name = f"{node.outputs[0].name}_on"
        copies.append(copy)
        value = copy.outputs[0]
    return copies


def _passing(source: ir.Value) -> ir.Node:
    node = ir.node("Identity", [source])
    node.outputs[0].name = f"{source.name}_off"
    return node


def _graph(nodes: Sequence[ir.Node]) -> ir.Graph:
    return ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=f"{nodes[-1].outputs[0].name}_branch")


def readers(model: ir.Model) -> Iterator[tuple[Quantizer, tuple[str, ...]]]:
    """Quantizers of float values, each with the names of the nodes that read it."""
    for quantizer in quantizers(model):
        if quantizer.quantize is not None:
            yield (
                quantizer,
                tuple(dict.fromkeys(str(use.node.name) for use in quantizer.output.uses() if use.node.name)),
            )
