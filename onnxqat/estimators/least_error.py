"""The part of a range that is quantized with the least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxqat.numerics import scale_and_zero_point

Floats = NDArray[np.float64]

#: Shares of the full range that the MSE search tries, and what it then tries around the best of them.
COARSE = np.linspace(1.0, 0.1, 31)
FINE = np.array([-0.02, -0.01, 0.01, 0.02])
#: Elements that it works on at a time: half a megabyte.
BLOCK = 2**17


def least_error(
    values: NDArray[np.floating], counts: NDArray[np.floating] | None, levels: int, *, symmetric: bool
) -> tuple[Floats, Floats]:
    """The shrunk range [C] of least squared error of `values` [C, K], weighted by `counts` [C, K] (None: all 1).

    Searched coarsely over `COARSE` for all channels, then finely around each channel's best (Banner et al. 2019, "Post-training
    4-bit quantization of convolutional networks for rapid-deployment", section 3, by search instead of in closed form).
    """
    occupied = values if counts is None else np.where(counts > 0, values, 0)
    low = np.minimum(occupied.min(axis=1), 0).astype(np.float64)
    high = np.maximum(occupied.max(axis=1), 0).astype(np.float64)
    signed = symmetric and bool((low < 0).any())
    qmin, qmax = (-(levels // 2), levels - levels // 2 - 1) if signed else (0, levels - 1)
    values32, counts32 = values.astype(np.float32), None if counts is None else counts.astype(np.float32)
    best, chosen = np.full(len(low), np.inf), np.ones(len(low))

    def attempt(shrink: Floats) -> None:
        scale, zero_point = scale_and_zero_point(low * shrink, high * shrink, qmin, qmax, symmetric=symmetric)
        error = _squared_error(values32, counts32, scale, qmin - zero_point, qmax - zero_point)
        better = error < best
        best[better], chosen[better] = error[better], shrink[better]

    for share in COARSE:
        attempt(np.full(len(low), share))
    centre = chosen.copy()
    for offset in FINE:
        attempt(np.clip(centre + offset, COARSE[-1], 1.0))
    return low * chosen, high * chosen


def _squared_error(
    values: NDArray[np.float32],
    counts: NDArray[np.float32] | None,
    scale: NDArray[np.float32],
    lowest: NDArray[np.int32],
    highest: NDArray[np.int32],
) -> Floats:
    """Sum of (fake-quantize(v) - v)² over each row [C], for codes less the zero point in [lowest, highest].

    The same arithmetic as `numerics.fake_quantize`, in place and in blocks that stay in the cache, since the search for a large
    weight spends all its time here.
    """
    rows = max(BLOCK // values.shape[1], 1)
    total = np.empty(len(values))
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        x, s = values[block], scale[block, None]
        y = x / s
        np.rint(y, out=y)
        np.clip(y, lowest[block, None].astype(np.float32), highest[block, None].astype(np.float32), out=y)
        y *= s
        y -= x
        total[block] = np.einsum("ck,ck->c", y, y) if counts is None else np.einsum("ck,ck,ck->c", y, y, counts[block])
    return total
