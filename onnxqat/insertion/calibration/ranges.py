"""Ranges of weights, which are there as a whole; those of activations are in `calibrate`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxqat.estimators.histogram import Floats
from onnxqat.estimators.table import ESTIMATORS, Codes, Estimate
from onnxqat.graph.qdq import Spec
from onnxqat.numerics import in_blocks


def weight_range(weight: NDArray[np.float32], spec: Spec, estimate: Estimate) -> tuple[Floats, Floats]:
    """Low and high of a weight, [] per tensor, [C] or, in blocks, of the weight's rank."""
    apart: NDArray[np.float32]
    if spec.axis is None:
        apart = weight.reshape(-1)
    elif spec.block:
        apart = np.moveaxis(in_blocks(weight, spec.axis, spec.block), spec.axis + 1, -1)
    else:
        channels = np.moveaxis(weight, spec.axis, 0)
        apart = channels.reshape(len(channels), -1)
    rows = apart.reshape(-1, apart.shape[-1])
    codes = Codes(spec.bounds[1] - spec.bounds[0] + 1, spec.symmetric)
    low, high = ESTIMATORS[estimate.type].of_values(rows, estimate, codes)
    return np.reshape(low, apart.shape[:-1]).astype(np.float64), np.reshape(high, apart.shape[:-1]).astype(np.float64)
