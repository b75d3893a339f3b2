"""Quantizers as they stand in a model: QuantizeLinear → (Clip) → DequantizeLinear, or a lone DequantizeLinear on stored codes.

A quantizer's spec is in its nodes: integer type and Clip bounds say the codes, the scale's rank the granularity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import UnsupportedModelError
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label
from onnxqat.graph.qdq_checks import check_agree, check_shapes, required
from onnxqat.numerics import E4M3_LARGEST, along_axis, dequantize, e4m3, integer_range, quantize

#: Key of the metadata of a node whose weight and bias `insert` has changed: a normalization behind it was folded into them.
FOLDED = "onnxqat.folded"
#: Key of the metadata of a quantizer's nodes: training leaves its scale as it is.
FIXED_GRID = "onnxqat.fixed_grid"
#: Width of activations that are finer than 8 bits.
WIDE = 16
FLOAT8 = ir.DataType.FLOAT8E4M3FN
#: Bounds of the types that QuantizeLinear writes (opset 21; E4M3 from 19).
CODE_BOUNDS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    FLOAT8: (-E4M3_LARGEST, E4M3_LARGEST),
}


@dataclass(frozen=True)
class Spec:
    """Specification of a value's quantization.

    Attributes:
        bits: width of the codes, 2 to 8, or 16.
        signed: whether codes run from negative to positive (int8) or from 0 (uint8).
        symmetric: whether the zero point is fixed at the middle code (or at 0 for what is never negative).
        narrow: leave out the lowest signed code: [-127, 127].
        axis: channel axis of per-channel scales, or the axis that blocks divide; None for one scale.
        block: number of elements along the axis that share a scale, in types of 4 bits (opset 21); 0: a scale per channel.
        float8: whether codes are numbers of E4M3 rather than integers (opset 19); always symmetric.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False
    axis: int | None = None
    block: int = 0
    float8: bool = False

    @property
    def bounds(self) -> tuple[int, int]:
        """(qmin, qmax) of the codes."""
        if self.float8:
            return CODE_BOUNDS[FLOAT8]
        return integer_range(self.bits, signed=self.signed, narrow=self.narrow)

    @property
    def dtype(self) -> ir.DataType:
        """The type of 8 or 16 bits that carries the codes; the one of 4 bits for blocks."""
        if self.float8:
            return FLOAT8
        if self.bits == WIDE:
            return ir.DataType.INT16 if self.signed else ir.DataType.UINT16
        if self.block:
            return ir.DataType.INT4 if self.signed else ir.DataType.UINT4
        return ir.DataType.INT8 if self.signed else ir.DataType.UINT8


@dataclass(frozen=True, eq=False)
class Quantizer:
    """One quantizer of a model.

    Attributes:
        source: the float value that is quantized; the integer initializer where only codes are stored.
        output: the float value that users read.
        quantize: the QuantizeLinear node; None where the codes are stored.
        clip: the Clip between the two, of codes below 8 bits; None otherwise.
        dequantize: the DequantizeLinear node.
        scale: float32 value, rank 0 (per tensor), [C] (per channel), or of the source's rank (in blocks).
        zero_point: integer value of the scale's shape; None for 0.
        axis: channel axis, or the one that blocks divide, counted from the front; None per tensor.
        qmin: lowest code.
        qmax: highest code.
        block: number of elements along the axis that share a scale; 0: none do, or all of a channel.
    """

    source: ir.Value
    output: ir.Value
    quantize: ir.Node | None
    clip: ir.Node | None
    dequantize: ir.Node
    scale: ir.Value
    zero_point: ir.Value | None
    axis: int | None
    qmin: int
    qmax: int
    block: int = 0

    @property
    def is_weight(self) -> bool:
        """Whether what is quantized is constant: a float initializer, or stored codes."""
        return constant(self.source) is not None

    @property
    def is_given(self) -> bool:
        """Whether the codes come from outside: an input of integers, whose scale says what they mean."""
        return self.quantize is None and not self.is_weight

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The quantizer's nodes in order of execution."""
        return tuple(n for n in (self.quantize, self.clip, self.dequantize) if n is not None)

    @property
    def bits(self) -> int:
        """Width of the codes in bits."""
        return 8 if self.is_float8 else (self.qmax - self.qmin).bit_length()

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """The scale as an array, [] or [C], or of the source's rank."""
        array = np.asarray(required(self.scale), np.float32)
        return array.reshape(()) if self.axis is None and array.size == 1 else array  # one scale may be written as [1]

    @cached_property
    def zero_points(self) -> NDArray[np.int32]:
        """The zero point as an int32 array of the scale's shape."""
        if self.zero_point is None:
            return np.zeros(self.scales.shape, np.int32)
        return np.asarray(required(self.zero_point)).astype(np.int32).reshape(self.scales.shape)

    @property
    def dtype(self) -> ir.DataType:
        """The integer type of the codes."""
        given = self.zero_point.dtype if self.zero_point is not None else None
        stored = self.dequantize.inputs[0].dtype if self.dequantize.inputs[0] is not None else None
        return given or stored or ir.DataType.UINT8

    @property
    def is_float8(self) -> bool:
        """Whether the codes are numbers of E4M3."""
        return self.dtype == FLOAT8

    @property
    def is_signed(self) -> bool:
        """Whether the integer type of the codes is signed, which a Clip of them need not show."""
        dtype = self.zero_point.dtype if self.zero_point is not None else None
        return self.qmin < 0 if dtype is None else dtype.is_signed()

    @property
    def codes(self) -> NDArray[Any]:
        """The raw codes of a weight, as stored or as they will be: int32, or float32 where they are numbers of E4M3."""
        array = required(self.source)
        if self.is_float8:
            scales = along_axis(self.scales, array.ndim, self.axis)
            return array.astype(np.float32) if self.quantize is None else e4m3(array / scales)
        if self.quantize is None:
            return array.astype(np.int32)
        return quantize(array, self.scales, self.zero_points, self.qmin, self.qmax, self.axis, self.block)

    @property
    def dequantized(self) -> NDArray[np.float32]:
        """The numbers behind a weight's codes."""
        if self.is_float8:
            return np.asarray(self.codes * along_axis(self.scales, self.codes.ndim, self.axis), np.float32)
        return dequantize(self.codes, self.scales, self.zero_points, self.axis, self.block)

    @property
    def granularity(self) -> str:
        """Granularity of the scales, in words."""
        if self.block:
            return f"blocks of {self.block} (axis {self.axis})"
        return "per tensor" if self.axis is None else f"per channel (axis {self.axis})"

    @property
    def same_grid_key(self) -> tuple[str, str, int, int]:
        """Equal for two quantizers that share scale, zero point and codes, and so leave each other's output unchanged."""
        zero_point = self.zero_point.name if self.zero_point is not None else ""
        return str(self.scale.name), str(zero_point), self.qmin, self.qmax


def quantizers(model: ir.Model) -> list[Quantizer]:
    """All quantizers of the main graph, in order of execution.

    Raises:
        UnsupportedModelError: a scale is computed at run time, or a QuantizeLinear and its DequantizeLinear disagree.
    """
    return [_read(node) for node in model.graph if node.op_type == "DequantizeLinear"]


def write_scalars(found: Iterable[Quantizer]) -> None:
    """Writes a lone scale and its zero point without axes, as ONNX Runtime's kernels want both where one of them has none."""
    for quantizer in found:
        for value in (quantizer.scale, quantizer.zero_point):
            tensor = None if value is None else value.const_value
            if value is not None and tensor is not None and quantizer.axis is None and tensor.shape.rank():
                value.const_value = ir.tensor(tensor.numpy().reshape(()), dtype=tensor.dtype, name=value.name)
                value.shape = ir.Shape([])


def is_quantized(model: ir.Model) -> bool:
    """Whether the model has any QuantizeLinear or DequantizeLinear."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.all_nodes())


def by_output(found: Iterable[Quantizer]) -> dict[ir.Value, Quantizer]:
    """Quantizers by the value they produce."""
    return {q.output: q for q in found}


def _read(dequantize: ir.Node) -> Quantizer:
    codes, scale = dequantize.inputs[0], dequantize.inputs[1]
    zero_point = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    assert codes is not None
    assert scale is not None
    if constant(scale) is None:
        computed = scale.producer()
        dynamic = computed is not None and computed.op_type == "DynamicQuantizeLinear"
        remedy = "start from the float model" if dynamic else "constant-fold the model first"
        raise UnsupportedModelError(f"{label(dequantize)}: scale {scale.name!r} is computed at run time; {remedy}")
    producer = codes.producer()
    clip = producer if producer is not None and producer.op_type == "Clip" else None
    above = clip.inputs[0] if clip is not None else codes
    assert above is not None
    quantize = above.producer()
    if quantize is not None and quantize.op_type != "QuantizeLinear":
        quantize = None
    source = codes if quantize is None else quantize.inputs[0]
    assert source is not None
    if quantize is not None:
        check_agree(quantize, dequantize)
    check_shapes(dequantize, scale, zero_point, source)
    qmin, qmax = _bounds(codes, zero_point, clip)
    return Quantizer(
        source=source,
        output=dequantize.outputs[0],
        quantize=quantize,
        clip=clip,
        dequantize=dequantize,
        scale=scale,
        zero_point=zero_point,
        axis=_axis(dequantize, scale, source),
        qmin=qmin,
        qmax=qmax,
        block=dequantize.attributes.get_int("block_size", 0),
    )


def _axis(dequantize: ir.Node, scale: ir.Value, source: ir.Value) -> int | None:
    if required(scale).ndim == 0:
        return None
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    if axis < 0 and source.shape is not None:
        axis += source.shape.rank()
    if required(scale).size == 1 and source.shape is not None and not dequantize.attributes.get_int("block_size", 0):
        # onnxruntime's quantizer writes one scale as [1] too, with an axis that need not exist
        one_channel = axis < source.shape.rank() and source.shape[axis] == 1
        return axis if one_channel else None
    return axis


def _bounds(codes: ir.Value, zero_point: ir.Value | None, clip: ir.Node | None) -> tuple[int, int]:
    dtype = (zero_point.dtype if zero_point is not None else None) or codes.dtype
    tensor = None if zero_point is None else ir.convenience.get_const_tensor(zero_point)
    if tensor is not None:
        dtype = tensor.dtype
    elif dtype is None:
        stored = ir.convenience.get_const_tensor(codes)
        dtype = stored.dtype if stored is not None else ir.DataType.UINT8
    if dtype not in CODE_BOUNDS:
        raise UnsupportedModelError(
            f"value {codes.name!r}: codes of type {dtype} are not handled; use integers of 4 to 32 bits, or float8e4m3fn"
        )
    qmin, qmax = CODE_BOUNDS[dtype]
    if clip is not None:
        low, high = (constant(clip.inputs[i]) if len(clip.inputs) > i else None for i in (1, 2))
        if any(bound is not None and bound.size != 1 for bound in (low, high)):
            raise UnsupportedModelError(
                f"Clip {clip.name!r}: a bound of codes is no single number; quantize the model again"
            )
        qmin = qmin if low is None else max(qmin, int(low.item()))
        qmax = qmax if high is None else min(qmax, int(high.item()))
    return qmin, qmax
