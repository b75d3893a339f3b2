"""Values that are constant."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer or a Constant node's output; None for what is computed at run time."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
