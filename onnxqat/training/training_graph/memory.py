"""Order of execution of a training graph, and what is computed twice so that less is kept.

Between the forward pass and the backward pass a quantizer keeps its input and its output. The output can be computed again from
the input, at the price of up to a tenth of a step: where memory counts more, each quantizer is called a second time right before
the backward pass first reads it. Of weights that take very much, the output is never kept. The session runs nodes in the order
of the file (`engine.py`), which makes this late and the result's memory predictable.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import get_args

import onnx_ir as ir

from onnxqat.autodiff.lowering import lower
from onnxqat.errors import InputError
from onnxqat.graph.nesting import owners
from onnxqat.names import MemoryName
from onnxqat.training.blocked.lower import lower as to_blocks
from onnxqat.training.quantizers import fakequant
from onnxqat.training.training_graph.again import compute_again
from onnxqat.training.training_graph.cut import ancestors
from onnxqat.training.training_graph.shared import note_weights

#: Bytes that kept outputs of weights' quantizers may take.
LARGEST_KEPT = 2**28
#: Operators that ONNX Runtime would expand itself, and so move to the end of its order, written as what it has kernels for.
_CAST_LIKE = "CastLike"


def recomputes(memory: MemoryName) -> bool:
    """Whether quantizers' outputs are computed again for the backward pass, for what the user says about memory.

    Raises:
        InputError: there is no such choice.
    """
    if memory not in get_args(MemoryName):
        raise InputError(f"memory is {memory!r}; it must be one of {', '.join(get_args(MemoryName))}")
    return memory == "low"


def schedule(
    model: ir.Model,
    forward_outputs: Iterable[str],
    block: int = 0,
    kernels: Collection[str] = (),
    *,
    twice: bool = True,
    fed: Collection[str] = (),
) -> None:
    """Brings quantizers close to what reads them, inlines functions and fixes the order; in place.

    Args:
        model: a training graph as `differentiate` returns it.
        forward_outputs: names of the values that the forward pass computes.
        block: channels of a block of the layout that convolutions get; 0: the plain layout.
        kernels: backward kernels that the engine has.
        twice: whether quantizers' outputs are computed again for the backward pass, so that they are short-lived.
        fed: names of inputs of which there may be gradients though they are no parameters.
    """
    graph = model.graph
    graph.sort()
    forward = ancestors(graph, set(forward_outputs))
    position = {node: index for index, node in enumerate(graph)}
    owner = owners(graph)  # a branch or body may be the reader
    calls = [node for node in graph if fakequant.is_call(node) and node in forward]
    weights, repeated = _large_weights(calls), list[str]()
    for call in calls:
        recomputed = twice or call in weights
        uses = [use for use in call.outputs[0].uses() if use.node in owner]  # a removed branch still counts there
        backward = [use for use in uses if owner[use.node] not in forward]
        if backward and recomputed:
            again = _again(call)
            repeated.append(str(again.outputs[0].name))
            graph.insert_before(min((owner[use.node] for use in backward), key=position.__getitem__), again)
            for use in backward:
                use.node.replace_input_with(use.idx, again.outputs[0])
        ahead = [owner[use.node] for use in uses if owner[use.node] in forward or not recomputed]
        if ahead and not call.outputs[0].is_graph_output():
            graph.remove(call)
            graph.insert_before(min(ahead, key=position.__getitem__), call)
    if block:
        to_blocks(model, block)
    note_weights(model, repeated, fed)
    lower(model, kernels)
    for node in [node for node in model.graph if node.op_type == _CAST_LIKE]:
        _write_as_cast(model.graph, node)
    compute_again(model.graph, ancestors(model.graph, set(forward_outputs)))


def _large_weights(calls: Sequence[ir.Node]) -> set[ir.Node]:
    """Quantizers of weights, if their outputs together are too large to keep."""
    sizes = {}
    for call in calls:
        source = call.inputs[0]
        if source is not None and source.producer() is None and source.shape is not None and source.shape.is_static():
            sizes[call] = 4 * math.prod(source.shape.numpy())
    return set(sizes) if sum(sizes.values()) > LARGEST_KEPT else set()


def _again(call: ir.Node) -> ir.Node:
    again = ir.Node(call.domain, call.op_type, list(call.inputs), name=f"{call.name}_again")
    output = again.outputs[0]
    output.name, output.type, output.shape = (
        f"{call.outputs[0].name}_again",
        call.outputs[0].type,
        call.outputs[0].shape,
    )
    return again


def _write_as_cast(graph: ir.Graph, node: ir.Node) -> None:
    target = node.inputs[1]
    dtype = target.dtype if target is not None and target.dtype is not None else ir.DataType.FLOAT
    cast = ir.node("Cast", [node.inputs[0]], {"to": dtype}, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [cast], node.outputs, cast.outputs)
