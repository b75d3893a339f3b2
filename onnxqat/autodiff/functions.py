"""Gradients of model-local functions. A function carries its own in `meta`, which its copies keep and files do not.

The gradient may call functions too: these come into a model when it is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxqat.autodiff.rule import Custom

_KEY, _CALLED = "onnxqat.gradient", "onnxqat.gradient.calls"


def give_gradient(function: ir.Function, rule: Custom, calls: Sequence[ir.Function] = ()) -> None:
    """Makes `rule` the gradient of calls of `function`; the formula calls the functions `calls`."""
    function.meta[_KEY], function.meta[_CALLED] = rule, tuple(calls)


def gradient_of(function: ir.Function) -> Custom | None:
    """Returns the gradient that a function carries, None if it has none."""
    carried = function.meta.get(_KEY)
    return carried if isinstance(carried, Custom) else None


def add_called(model: ir.Model) -> None:
    """Adds, in place, the functions that gradients of the model's functions call."""
    called = [made.clone() for function in model.functions.values() for made in function.meta.get(_CALLED, ())]
    for function in called:
        function.opset_imports[""] = model.graph.opset_imports[""]
        model.functions[function.identifier()] = function
        model.graph.opset_imports.setdefault(function.domain, 1)
