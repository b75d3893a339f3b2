"""The operators that a module's call consists of, each opaque to `torch.compile`: it sees shapes, and ONNX Runtime computes.

Of a module's state an operator is told the name of the graph and the stage of quantization; all else are tensors, so that a
compiled program reads what they hold when it runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import library

from onnxqat.torch.graph import Graph, as_tensor, as_values
from onnxqat.training.training_graph.halves import cotangent

Tensors = Sequence[torch.Tensor]


@library.custom_op(
    "onnxqat::run", mutates_args=(), schema="(str graph, str stage, bool[] asked, Tensor[] tensors) -> Tensor[]"
)  # type: ignore[untyped-decorator]
def run(graph: str, stage: str, asked: Sequence[bool], tensors: Tensors) -> list[torch.Tensor]:
    """The computed outputs, and what else the gradient by the tensors asked for reads.

    Args:
        graph: name of the graph.
        stage: kinds of what is quantized: "activations", "weights", both, or none.
        asked: for each of the tensors, whether there is to be a gradient by it.
        tensors: inputs, parameters, zero points.
    """
    held = Graph.called(graph)
    values = held.values(tensors)
    call = held.call(stage, asked)
    found = call.forward(values, held.memory.take)
    return [as_tensor(found[name]) for name in call.results]


@run.register_fake  # type: ignore[untyped-decorator]
def _(graph: str, stage: str, asked: Sequence[bool], tensors: Tensors) -> list[torch.Tensor]:
    held = Graph.called(graph)
    call = held.call(stage, asked)
    inputs = tensors[: len(held.signature.inputs)]
    shapes = held.shapes(call, [tuple(tensor.shape) for tensor in inputs])
    device = tensors[0].device
    return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, call.types, strict=True)]


@library.custom_op(
    "onnxqat::run_backward",
    mutates_args=(),
    schema="(str graph, str stage, bool[] asked, Tensor[] saved, Tensor[] cotangents) -> Tensor[]",
)  # type: ignore[untyped-decorator]
def run_backward(
    graph: str, stage: str, asked: Sequence[bool], saved: Tensors, cotangents: Tensors
) -> list[torch.Tensor]:
    """Gradients by the tensors asked for; zeros for scales that the stage does not use.

    Args:
        graph: as for `run`.
        stage: as for `run`.
        asked: as for `run`.
        saved: tensors and results that the backward half reads.
        cotangents: of the differentiable outputs.
    """
    held = Graph.called(graph)
    call = held.call(stage, asked)
    given = dict(zip(call.saved(list(held.signature.inputs)), saved, strict=True))
    given |= zip(map(cotangent, call.function.differentiable), cotangents, strict=True)
    found, device = call.backward(as_values(given)), cotangents[0].device
    return [as_tensor(found[n]) if n in found else torch.zeros(held.parameters[n], device=device) for n in call.wrt]


@run_backward.register_fake  # type: ignore[untyped-decorator]
def _(graph: str, stage: str, asked: Sequence[bool], saved: Tensors, cotangents: Tensors) -> list[torch.Tensor]:
    held = Graph.called(graph)
    call = held.call(stage, asked)
    inputs = dict(zip(call.saved(list(held.signature.inputs)), saved, strict=True))
    return [
        torch.empty(held.parameters[name], device=cotangents[0].device)
        if name in held.parameters
        else torch.empty_like(inputs[name])
        for name in call.wrt
    ]


def _remember(ctx: Any, inputs: tuple[str, str, Sequence[bool], Tensors], output: Tensors) -> None:
    """Keeps for the backward half what it reads: PyTorch notices when one of these changes, and lets go of them after it."""
    graph, stage, asked, tensors = inputs
    held = Graph.called(graph)
    call = held.call(stage, asked)
    known = {**dict(zip(held.tensors, tensors, strict=True)), **dict(zip(call.results, output, strict=True))}
    ctx.held, ctx.call, ctx.arguments = held, call, (graph, stage, asked)
    ctx.shapes = [known[name].shape for name in call.function.differentiable]
    ctx.types = [known[name].dtype for name in call.function.differentiable]
    ctx.device = tensors[0].device
    ctx.save_for_backward(*(known[name] for name in call.saved(list(held.signature.inputs))))
    ctx.mark_non_differentiable(*(known[name] for name in call.results if name not in call.function.differentiable))
    ctx.set_materialize_grads(False)  # zeros for what crosses between the halves would be as large as it is


def _backward(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> tuple[None, None, None, list[torch.Tensor | None]]:
    given = dict(zip(ctx.call.results, gradients, strict=True))
    cotangents = [
        torch.zeros(shape, dtype=dtype, device=ctx.device) if given[name] is None else given[name]
        for name, shape, dtype in zip(ctx.call.function.differentiable, ctx.shapes, ctx.types, strict=True)
    ]
    found = iter(run_backward(*ctx.arguments, list(ctx.saved_tensors), cotangents))
    return None, None, None, [next(found) if wanted else None for wanted in ctx.arguments[2]]


def _second(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> Any:
    raise RuntimeError("second derivatives: the ONNX graph has first ones only; leave out create_graph")


run.register_autograd(_backward, setup_context=_remember)
run_backward.register_autograd(_second)


@library.custom_op(
    "onnxqat::bound",
    mutates_args={"scales"},
    schema="(str graph, Tensor(a!)[] scales, Tensor[] others, Tensor[] bounds) -> ()",
)  # type: ignore[untyped-decorator]
def bound(graph: str, scales: Tensors, others: Tensors, bounds: Tensors) -> None:
    """Clips scales to their bounds in place; touches no others: PyTorch counts changes.

    Args:
        graph: as for `run`.
        scales: all scales that are parameters.
        others: the other parameters.
        bounds: lowest and highest value of scales, in the layout's order.
    """
    held = Graph.called(graph)
    given = dict(zip(itertools.chain(*held.scales_and_others), [*scales, *others], strict=True))
    for name, array in held.out_of_bounds(given, bounds):
        given[name].copy_(array)


@bound.register_fake  # type: ignore[untyped-decorator]
def _(graph: str, scales: Tensors, others: Tensors, bounds: Tensors) -> None:
    """Changes no shape."""
