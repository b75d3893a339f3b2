"""The maths of uniform quantization in NumPy: the one place where it is written down, and the oracle of every test.

Throughout, ``x`` is float, ``scale`` float32 > 0, ``zero_point`` an integer in [qmin, qmax], and ``axis`` the channel axis of
``x`` along which scale and zero point run (None: one scale, rank 0, for the whole tensor).

    quantize:        q = clip(rint(x / scale) + zero_point, qmin, qmax)          float -> int
    dequantize:      y = (q - zero_point) · scale                                int -> float
    fake-quantize:   y = dequantize(quantize(x))                                 float -> float

With ``block`` scale and zero point have the rank of ``x``, and each of their entries along ``axis`` is for so many elements of
``x``, the last one perhaps for fewer.

``np.rint`` and ONNX QuantizeLinear both round half to even. The affine map is that of Jacob et al. 2018 ("Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"), eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]

#: A channel whose range is smaller than this share of the widest channel's gets that share instead: a dead channel must not
#: drive its scale, and with it the int32 bias `b / (sx · sw)`, out of range.
CHANNEL_SCALE_FLOOR = 2.0**-14

#: Largest number of E4M3.
E4M3_LARGEST = 448

#: Range of a sum of two products on processors that add them in pairs (see `saturates`).
SIXTEEN_BITS = (-(2**15), 2**15 - 1)
#: Code that a pair of weights together, and each of them alone, may reach before rounding: 255 · (127 + 1) still fits 16 bits.
PAIR_CODE = 127
#: Largest zero point, of either sign, of asymmetric weights of which two zeros are a safe pair with room for a weight.
PAIR_ZERO_POINT = 63


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


def spread(parameter: Array | float, shape: tuple[int, ...], axis: int | None, block: int = 0) -> Array:
    """Brings `parameter` to a shape that broadcasts over `shape`: see `along_axis`, or each entry repeated for its block."""
    if not block:
        return along_axis(parameter, len(shape), axis)
    assert axis is not None
    repeated = np.repeat(np.asarray(parameter), block, axis=axis)
    return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


def in_blocks(x: Array, axis: int, block: int) -> Array:
    """Returns `x` [.., K, ..] as [.., ⌈K/block⌉, block, ..], with zeros where the last block is not full."""
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, -x.shape[axis] % block)
    padded = np.pad(x, missing)
    return padded.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


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
    x: Array,
    scale: Array | float,
    zero_point: Array | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    block: int = 0,
) -> NDArray[np.int32]:
    """Float to codes, ONNX QuantizeLinear: int32 of the shape of `x`, in [qmin, qmax], ties to even."""
    return np.asarray(np.clip(_codes(x, scale, zero_point, axis, block), qmin, qmax), np.int32)


def clipped(
    x: Array,
    scale: Array | float,
    zero_point: Array | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    block: int = 0,
) -> NDArray[np.bool_]:
    """Returns the mask of values that a quantizer cannot represent (code outside [qmin, qmax]); bool, shape of `x`."""
    code = _codes(x, scale, zero_point, axis, block)
    return np.asarray((code < qmin) | (code > qmax))


def _codes(x: Array, scale: Array | float, zero_point: Array | int, axis: int | None, block: int) -> Array:
    """Codes before they are clipped."""
    s, z = (spread(p, x.shape, axis, block) for p in (scale, zero_point))
    return np.asarray(np.rint(x / s.astype(x.dtype)) + z)


def dequantize(
    q: Array, scale: Array | float, zero_point: Array | int, axis: int | None = None, block: int = 0
) -> Floats:
    """Codes to float, ONNX DequantizeLinear: float32 of the shape of `q`."""
    s, z = (spread(p, q.shape, axis, block) for p in (scale, zero_point))
    return np.asarray((q.astype(np.int32) - z.astype(np.int32)) * s.astype(np.float32), np.float32)


def fake_quantize(
    x: Array,
    scale: Array | float,
    zero_point: Array | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    block: int = 0,
) -> Floats:
    """Quantizes and dequantizes a float tensor; float32 of the shape of `x`."""
    codes = quantize(x, scale, zero_point, qmin, qmax, axis, block)
    return dequantize(codes, scale, zero_point, axis, block)


def fake_quantize_gradient(
    dy: Array,
    x: Array,
    scale: Array | float,
    zero_point: Array | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    block: int = 0,
) -> tuple[Floats, Floats]:
    """Gradient of fake-quantize with respect to data and scale: LSQ, Esser et al. 2020, eqs. 3 and 5, for any zero point.

    Straight through for codes that were not clipped, zero beyond: dx = dy · inside. With u = x/scale the derivative of y by
    the scale is rint(u) - u inside, and the clipped code less the zero point beyond.

    Returns:
        dx of the shape of `x`; dscale of the shape of `scale`.
    """
    s, z = (spread(p, x.shape, axis, block) for p in (scale, zero_point))
    u = x / s.astype(x.dtype)
    code = np.rint(u) + z
    inside = ~clipped(x, scale, zero_point, qmin, qmax, axis, block)
    dy_ds = np.where(inside, np.rint(u) - u, np.clip(code, qmin, qmax) - z)
    summands = dy.astype(np.float64) * dy_ds
    if block:
        assert axis is not None
        dscale = in_blocks(summands, axis, block).sum(axis=axis + 1)
    else:
        others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        dscale = np.sum(summands, axis=others)
    return np.asarray(dy * inside, np.float32), np.asarray(dscale, np.float32)


def e4m3(x: Array) -> Floats:
    """The nearest numbers of E4M3 (float8e4m3fn), ties to even; ±448 beyond these. Float32 of the shape of `x`.

    It has 3 bits behind the leading one, down to 2⁻⁶, and steps of 2⁻⁹ below (Micikevicius et al. 2022, "FP8 Formats for Deep
    Learning", table 1).
    """
    exponent = np.maximum(np.frexp(x)[1] - 1, -6)
    step = np.ldexp(np.float32(1), exponent - 3)
    return np.asarray(np.clip(np.rint(x / step) * step, -E4M3_LARGEST, E4M3_LARGEST), np.float32)


def fake_quantize_e4m3(x: Array, scale: Array | float, axis: int | None = None) -> Floats:
    """Brings x/scale to E4M3, and back: float32 of the shape of `x`."""
    s = along_axis(scale, x.ndim, axis).astype(np.float32)
    return np.asarray(e4m3(x / s) * s, np.float32)


def fake_quantize_e4m3_gradient(
    dy: Array, x: Array, scale: Array | float, axis: int | None = None
) -> tuple[Floats, Floats]:
    """Gradient of `fake_quantize_e4m3` with respect to data and scale: LSQ's (see `fake_quantize_gradient`) on another grid.

    The derivation needs no even steps: with u = x/scale it is e4m3(u) - u for the scale where |u| is at most 448, ±448 beyond.
    Kuzmin et al. 2022 ("FP8 Quantization: The Power of the Exponent") pass the rounding and clip in the same way.
    """
    u = x / along_axis(scale, x.ndim, axis).astype(np.float32)
    inside = np.abs(u) <= E4M3_LARGEST
    summands = dy.astype(np.float64) * np.where(inside, e4m3(u) - u, np.sign(u) * E4M3_LARGEST)
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return np.asarray(dy * inside, np.float32), np.asarray(np.sum(summands, axis=others), np.float32)


def saturates(first: Array, second: Array, largest: int) -> NDArray[np.bool_]:
    """Returns the mask of pairs of weight codes that can saturate where x86 without VNNI adds products in 16 bits.

    The sum a0·w0 + a1·w1, for raw data codes a from 0 to `largest`, is furthest from 0 where both weights have the same sign and
    both codes are the largest: it fits iff largest · |w0 + w1| does. Weights of unequal signs never saturate: their
    products alone fit (255 · 128), and pull the sum towards 0.

    Args:
        first: raw int8 codes of the one weight, zero point included, of any shape.
        second: codes of the other, same shape; 0 where the kernel pads.
        largest: largest raw data code, 255 at most; what pads the data counts too, as the code of 0, its zero point.
    """
    total = (first.astype(np.int64) + second) * largest
    return np.asarray((total < SIXTEEN_BITS[0]) | (total > SIXTEEN_BITS[1]))


@dataclass(frozen=True)
class Reach:
    """Reach of the weights of a channel, in the float weight's unit, from which a pair-safe scale follows.

    Attributes:
        low: smallest weight, 0 at most, [] or [C].
        high: largest weight, 0 at least, same shape.
        pair_low: smallest sum of two weights whose products a kernel adds as a pair, 0 at most, same shape.
        pair_high: largest such sum, 0 at least, same shape.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    pair_low: NDArray[np.float64]
    pair_high: NDArray[np.float64]

    def union(self, other: Reach) -> Reach:
        """The reach of both together, where two kernels read the same weight."""
        return Reach(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.minimum(self.pair_low, other.pair_low),
            np.maximum(self.pair_high, other.pair_high),
        )

    @classmethod
    def joined(cls, parts: Sequence[Reach]) -> Reach:
        """The reaches of several weights, one after another: of shape [ΣC]."""
        fields = ([part.low, part.high, part.pair_low, part.pair_high] for part in parts)
        return cls(*(np.concatenate([np.ravel(array) for array in arrays]) for arrays in zip(*fields, strict=True)))


def pair_safe_scale(reach: Reach, zero_point: Array | int) -> NDArray[np.float64]:
    """Smallest scale at which no pair of 8-bit weights saturates and no code is -128; float64, [] or [C].

    With zero point 0 it is P/127, P the largest |w0| + |w1| of equal signs, or |w| of a weight alone. The raw codes of a pair
    add up to rint(w0/s) + rint(w1/s) + 2z. Rounding adds 1 at most, so they stay within ±128 where (w0 + w1)/s + 2z is
    within ±127; `saturates` begins at 129, which leaves 1/127 for errors of float32. A single weight is held to w/s + z
    within ±127: ARM64's kernels without dot product wrap where two products -128 · -128 meet.

    Args:
        reach: of the weights.
        zero_point: of the weights, within ±`PAIR_ZERO_POINT`; same shape as the reach, or [].
    """
    z = np.asarray(zero_point, np.float64)
    pairs = np.maximum(reach.pair_high / (PAIR_CODE - 2 * z), -reach.pair_low / (PAIR_CODE + 2 * z))
    return np.maximum(pairs, np.maximum(reach.high / (PAIR_CODE - z), -reach.low / (PAIR_CODE + z)))


def pair_safe_zero_point(reach: Reach) -> NDArray[np.int32]:
    """The zero point of asymmetric weights at which `pair_safe_scale` is smallest as far as pairs decide; int32, [] or [C]."""
    span = np.maximum(reach.pair_high - reach.pair_low, np.finfo(np.float32).tiny)
    middle = np.rint(-PAIR_CODE / 2 * (reach.pair_high + reach.pair_low) / span)
    return np.asarray(np.clip(middle, -PAIR_ZERO_POINT, PAIR_ZERO_POINT), np.int32)
