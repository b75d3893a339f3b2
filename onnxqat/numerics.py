"""The maths of uniform quantization in NumPy: the one place where it is written down, and the oracle of every test.

Throughout, ``x`` is float, ``scale`` float32 > 0, ``zero_point`` an integer in [qmin, qmax], and ``axis`` the channel axis of
``x`` along which scale and zero point run (None: one scale, rank 0, for the whole tensor).

    quantize:        q = clip(rint(x / scale) + zero_point, qmin, qmax)          float -> int
    dequantize:      y = (q - zero_point) · scale                                int -> float
    fake-quantize:   y = dequantize(quantize(x))                                 float -> float

``np.rint`` and ONNX QuantizeLinear both round half to even. The affine map is that of Jacob et al. 2018 ("Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"), eq. 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

#: A channel whose range is smaller than this share of the widest channel's gets that share instead: a dead channel must not
#: drive its scale, and with it the int32 bias `b / (sx · sw)`, out of range.
CHANNEL_SCALE_FLOOR = 2.0**-14


def integer_range(bits: int, *, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Returns (qmin, qmax) of a `bits`-wide integer; a narrow signed range leaves out the lowest code (-127…127)."""
    if not 2 <= bits <= 16:
        raise ValueError(f"bits is {bits}; it must be 2 to 16")
    if signed:
        return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def along_axis(parameter: Array | float, rank: int, axis: int | None) -> Array:
    """Reshapes per-channel `parameter` [C] so that it broadcasts along `axis` of a tensor of that rank."""
    values = np.asarray(parameter)
    if axis is None or values.ndim == 0:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def scale_and_zero_point(
    low: Array | float, high: Array | float, qmin: int, qmax: int, *, symmetric: bool
) -> tuple[Floats, NDArray[np.int32]]:
    """Scale and zero point that map the range [low, high] onto [qmin, qmax].

    The range is first widened to hold 0, so that zero (padding, Relu) has a code of its own. Symmetric: the zero point is the
    middle code (0 if signed) for a range that holds negative numbers, and qmin of an unsigned type for one that does not;
    asymmetric: Jacob et al. 2018, section 3.

    Args:
        low: smallest values to represent, shape [] or [C].
        high: largest values to represent, same shape.
        qmin: lowest code.
        qmax: highest code.
        symmetric: whether the zero point is fixed rather than fitted.

    Returns:
        Scale (float32 > 0) and zero point (int32), both of the shape of `low`.
    """
    low = np.minimum(np.asarray(low, np.float64), 0)
    high = np.maximum(np.asarray(high, np.float64), 0)
    if symmetric:
        one_sided = qmin == 0 and bool(np.all(low >= 0))
        centre = qmin if one_sided else (qmin + qmax + 1) // 2
        below = np.where(low < 0, -low / max(centre - qmin, 1), 0)
        scale = np.maximum(below, high / (qmax - centre))
        zero_point = np.full(scale.shape, centre, np.int32)
    else:
        scale = (high - low) / (qmax - qmin)
        safe = np.where(scale > 0, scale, 1)
        zero_point = np.clip(np.rint(qmin - low / safe), qmin, qmax).astype(np.int32)
    return floor_scale(scale), zero_point


def floor_scale(scale: Array) -> Floats:
    """Keeps scales positive: empty channels follow the widest one (`CHANNEL_SCALE_FLOOR`), an all-zero tensor gets 1."""
    scale = np.asarray(scale, np.float64)
    largest = float(scale.max(initial=0))
    smallest = max(largest * CHANNEL_SCALE_FLOOR, float(np.finfo(np.float32).tiny))
    return np.asarray(np.maximum(scale, smallest) if largest > 0 else np.ones_like(scale), np.float32)


def quantize(
    x: Array, scale: Array | float, zero_point: Array | int, qmin: int, qmax: int, axis: int | None = None
) -> NDArray[np.int32]:
    """Float to codes, ONNX QuantizeLinear: int32 of the shape of `x`, in [qmin, qmax], ties to even."""
    s, z = along_axis(scale, x.ndim, axis), along_axis(zero_point, x.ndim, axis)
    codes = np.rint(x / s.astype(x.dtype)) + z
    return np.asarray(np.clip(codes, qmin, qmax), np.int32)


def clipped(
    x: Array, scale: Array | float, zero_point: Array | int, qmin: int, qmax: int, axis: int | None = None
) -> NDArray[np.bool_]:
    """Which values a quantizer cannot represent: their code would lie outside [qmin, qmax]; bool of the shape of `x`."""
    s, z = along_axis(scale, x.ndim, axis), along_axis(zero_point, x.ndim, axis)
    code = np.rint(x / s.astype(x.dtype)) + z
    return np.asarray((code < qmin) | (code > qmax))


def dequantize(q: Array, scale: Array | float, zero_point: Array | int, axis: int | None = None) -> Floats:
    """Codes to float, ONNX DequantizeLinear: float32 of the shape of `q`."""
    s, z = along_axis(scale, q.ndim, axis), along_axis(zero_point, q.ndim, axis)
    return np.asarray((q.astype(np.int32) - z.astype(np.int32)) * s.astype(np.float32), np.float32)


def fake_quantize(
    x: Array, scale: Array | float, zero_point: Array | int, qmin: int, qmax: int, axis: int | None = None
) -> Floats:
    """What a float tensor becomes on its way through a quantizer: float32 of the shape of `x`."""
    return dequantize(quantize(x, scale, zero_point, qmin, qmax, axis), scale, zero_point, axis)


def fake_quantize_gradient(
    dy: Array, x: Array, scale: Array | float, zero_point: Array | int, qmin: int, qmax: int, axis: int | None = None
) -> tuple[Floats, Floats]:
    """Gradient of fake-quantize with respect to data and scale: LSQ, Esser et al. 2020, eqs. 3 and 5, for any zero point.

    Straight through for codes that were not clipped, zero beyond: dx = dy · inside. With u = x/scale the derivative of y by
    the scale is rint(u) - u inside, and the clipped code less the zero point beyond.

    Returns:
        dx of the shape of `x`; dscale of the shape of `scale`.
    """
    s, z = along_axis(scale, x.ndim, axis), along_axis(zero_point, x.ndim, axis)
    u = x / s.astype(x.dtype)
    code = np.rint(u) + z
    inside = ~clipped(x, scale, zero_point, qmin, qmax, axis)
    dy_ds = np.where(inside, np.rint(u) - u, np.clip(code, qmin, qmax) - z)
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    dscale = np.sum(dy.astype(np.float64) * dy_ds, axis=others)
    return np.asarray(dy * inside, np.float32), np.asarray(dscale, np.float32)
