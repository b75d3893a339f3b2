"""Gradients of model-local functions. A function carries its own in `meta`, which its copies keep and files do not."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.autodiff.rule import Custom

_KEY = "onnxqat.gradient"


def give_gradient(function: ir.Function, rule: Custom) -> None:
    """Makes `rule` the gradient of calls of `function`."""
    function.meta[_KEY] = rule


def gradient_of(function: ir.Function) -> Custom | None:
    """Returns the gradient that a function carries, None if it has none."""
    carried = function.meta.get(_KEY)
    return carried if isinstance(carried, Custom) else None
