"""Ranges of weights, which are there as a whole; those of activations are in `calibrate`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxqat.estimators.histogram import Floats
from onnxqat.estimators.table import ESTIMATORS, Codes, Estimate
from onnxqat.graph.qdq import Spec


def weight_range(weight: NDArray[np.float32], spec: Spec, estimate: Estimate) -> tuple[Floats, Floats]:
    """Low and high of a weight, [] per tensor or [C]."""
    rows = (
        weight.reshape(1, -1)
        if spec.axis is None
        else np.moveaxis(weight, spec.axis, 0).reshape(weight.shape[spec.axis], -1)
    )
    codes = Codes(spec.bounds[1] - spec.bounds[0] + 1, spec.symmetric)
    low, high = ESTIMATORS[estimate.type].of_values(rows, estimate, codes)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    return (low[0], high[0]) if spec.axis is None else (low, high)
