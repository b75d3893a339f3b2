"""Gradients of model-local functions. A function carries its own in `meta`, which its copies keep and files do not."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import FunctionGradient

_KEY = "onnxqat.gradient"


def give_gradient(
    function: ir.Function,
    gradient: ir.Function,
    *,
    arguments: Sequence[str],
    results: Sequence[str],
    steering: Sequence[int] = (),
) -> None:
    """Makes one call of the function `gradient` the gradient of `function`.

    Args:
        function: the function that gets a gradient.
        gradient: the gradient function; it is added to a model that is differentiated.
        arguments: arguments of its call: `GO(i)`, the gradient of output i; `I(i)`, input i; `O(i)`, output i.
        results: results of its call: `GI(i)`, the gradient of input i.
        steering: indices of float inputs that only control the function, and need no gradient.
    """
    function.meta[_KEY] = FunctionGradient(
        gradient,
        tuple(arguments),
        tuple(results),
        inputs=frozenset(int(result[3:-1]) for result in results),
        steering=frozenset(steering),
    )


def gradient_of(function: ir.Function) -> FunctionGradient | None:
    """Returns the gradient that a function carries, None if it has none."""
    carried = function.meta.get(_KEY)
    return carried if isinstance(carried, FunctionGradient) else None
