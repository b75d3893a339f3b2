"""What is said of numbers that are not finite, and how they are noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.train.engine import Engine, Floats
from onnxqat.train.losses import LOSS

REMEDY = "lower the learning rate, clip gradients, or check data and labels (the parameters are those before this step)"


def norm_of(array: Floats) -> float:
    """Euclidean norm; infinity or NaN where a number is, or where the squares overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(np.dot(array, array)))


def not_finite(engine: Engine, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> str:
    """Which tensor of the last step is the first that is not finite, for a batch on which the loss or a gradient was not."""
    loss, layout = engine.loss, engine.layout
    arrays = zip(outputs, engine.evaluate(feeds, [*outputs, LOSS]), strict=False)
    candidates = [("parameter", layout.named(engine.parameters).items()), ("output", arrays)]
    candidates.append(("gradient of", layout.named(engine.gradients).items()))
    for what, tensors in candidates:
        name = next((name for name, array in tensors if not np.isfinite(array).all()), None)
        if name is not None:
            return f"{what} {name!r} is not finite (loss {loss})"
    return f"the norm of the gradient is not finite (loss {loss})"
