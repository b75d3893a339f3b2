"""One run of the graph from PyTorch, and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from onnxqat.training.engine import Value, as_value, dlpack
from onnxqat.training.training_graph.halves import Function, cotangent, gradient
from onnxqat.training.wrapped import Wrapped


def run(wrapped: Wrapped, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The computed outputs by name, in the schedule's stage; with gradients by whatever requires one, if any is asked for.

    Gradients of scales that the stage does not use are zeros.
    """
    function = wrapped.current
    wrt = frozenset(name for name, tensor in tensors.items() if tensor.requires_grad)
    if wrt and torch.is_grad_enabled():
        unused = {one.name for one in wrapped.whole.layout.parameters} - {
            one.name for one in function.layout.parameters
        }
        computed = _Run.apply(function, wrt - unused, list(tensors), *tensors.values())
        return dict(zip(function.computed, computed, strict=True))
    found = function.evaluate({name: _value(tensor) for name, tensor in tensors.items()})
    return {name: _tensor(value) for name, value in found.items()}


class _Run(torch.autograd.Function):  # type: ignore[misc]
    """One run of the forward half, and of the backward half when PyTorch asks for it."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, wrt: frozenset[str], names: list[str], *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        ctx.function, ctx.wrt, ctx.halves = function, wrt, function.halves(wrt)
        ctx.names, ctx.shapes = names, [tensor.shape for tensor in tensors]
        results = ctx.halves.forward({name: _value(tensor) for name, tensor in given.items()})
        known = {**given, **{name: _tensor(value) for name, value in results.items()}}
        ctx.saved = [name for name in ctx.halves.backward.inputs if name in known]
        # PyTorch notices when one of them changes before the backward pass, and lets go of them after it.
        ctx.save_for_backward(*(known[name] for name in ctx.saved))
        ctx.mark_non_differentiable(*(known[n] for n in function.computed if n not in function.differentiable))
        return tuple(known[name] for name in function.computed)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outputs = dict(zip(ctx.function.computed, cotangents, strict=True))
        given = {cotangent(name): outputs[name] for name in ctx.function.differentiable}
        given |= dict(zip(ctx.saved, ctx.saved_tensors, strict=True))
        results = ctx.halves.backward({name: _value(tensor) for name, tensor in given.items()})
        gradients = [_tensor(results[gradient(name)]) if name in ctx.wrt else None for name in ctx.names]
        asked = zip(gradients, ctx.shapes, ctx.needs_input_grad[3:], strict=True)
        return None, None, None, *(torch.zeros(shape) if needed and g is None else g for g, shape, needed in asked)


def _value(tensor: torch.Tensor) -> Value:
    """The tensor as ONNX Runtime's value, in the same memory where that is contiguous."""
    return as_value(tensor.detach().numpy())


def _tensor(value: Value) -> torch.Tensor:
    """ONNX Runtime's value as a tensor in the same memory."""
    tensor = torch.from_dlpack(dlpack(value))
    # DLPack as ONNX Runtime 1.19 writes it has no booleans.
    return tensor.view(torch.bool) if value.data_type() == "tensor(bool)" else tensor
