"""The drop of a model right after insertion, by which budgets of drop are judged."""

from __future__ import annotations

from typing import Any

import onnx

from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.metrics.table import Function
from onnxqat.verification.run import verify


def judged_drop(
    qdq: onnx.ModelProto,
    data: Any,
    original: io.ModelLike,
    metric: str | Function,
    transform: sources.Transform | None = None,
) -> float:
    """Drop of a Q/DQ model, when deployed, from the float model.

    Raises:
        InputError: nothing can be judged.
    """
    verdict = verify(qdq, fold(qdq), data, float_model=original, metric=metric, transform=transform).verdict
    if verdict is None:
        raise InputError(
            "budget: drop cannot be judged, as there are neither labels nor class scores; give size or bits"
        )
    return verdict.drop
