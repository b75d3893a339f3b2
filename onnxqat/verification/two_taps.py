"""Computes, in plain operators, what a layer loses where pairs of its products saturate 16 bits.

A pair is computed by itself, as two taps on raw codes, clipped to 16 bits and subtracted: the difference is what its sum lost.
A 1 × 1 convolution, or a MatMul, adds up the losses of each output. All numbers are integers that float32 holds exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name
from onnxqat.graph.pairs import PairedLayer, Runtime
from onnxqat.numerics import SIXTEEN_BITS, saturates

Array = NDArray[Any]
Operand = ir.Value | Array | np.generic | None
#: Each takes the room of an output channel, several times over.
PAIRS_AT_ONCE = 512
#: Attributes that say which inputs meet in an output of a convolution; the others say how large kernel and groups are.
_PLACING = ("auto_pad", "dilations", "output_padding", "output_shape", "pads", "strides")


class Writer:
    """Writes nodes in front of one node of a graph: `write("Add", value, array)` is the value of their sum."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph, self._before = graph, before

    def __call__(self, op_type: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """Writes one node of one output; arrays become initializers."""
        operands = [i if i is None or isinstance(i, ir.Value) else self._constant(np.asarray(i)) for i in inputs]
        node = ir.node(op_type, operands, attributes, name=fresh_name(self._graph, f"{self._before.name}_{op_type}"))
        node.outputs[0].name = fresh_value_name(self._graph, f"{node.name}_output")
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type."""
        return self("Cast", value, to=dtype.value)

    def _constant(self, array: Array) -> ir.Value:
        return constant_value(self._graph, f"{self._before.name}_constant", array)


@dataclass(frozen=True)
class TwoTaps:
    """The pairs of one layer that can saturate.

    Attributes:
        inputs: input channels of the two members, absolute, int64 [P, 2].
        taps: their places in the kernel, int64 [P, 2, rank]; rank 0 for MatMul and Gemm.
        weights: their codes, float32 [P, 2].
        outputs: the output channel of each pair, int64 [P], rising.
        channels: how many output channels there are.
    """

    inputs: Array
    taps: Array
    weights: Array
    outputs: Array
    channels: int


def two_taps(layer: PairedLayer, runtime: Runtime) -> TwoTaps:
    """The pairs of a layer that can saturate in the kernels of a runtime, on AVX2."""
    codes = layer.weight.codes.reshape(-1)
    places = layer.pairs(np.arange(codes.size).reshape(layer.shape), layer.pairings(runtime)[0], fill=-1)
    weights = np.where(places < 0, 0, codes[places])
    found = saturates(weights[..., 0], weights[..., 1], layer.largest)
    at = np.unravel_index(places[found], layer.shape)
    inputs, outputs, taps = _located(layer, at)
    channels = layer.shape[0] if layer.node.op_type == "Conv" or is_transposed(layer.node) else layer.shape[-1]
    return TwoTaps(inputs, taps, weights[found].astype(np.float32), outputs[:, 0], channels)


def _located(layer: PairedLayer, at: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """Input channel, output channel and tap of elements of the weight, given their indices [P, 2] along each axis."""
    groups = layer.node.attributes.get_int("group", 1)
    taps = np.stack(at[2:], axis=-1) if len(at) > 2 else np.zeros((*at[0].shape, 0), np.int64)
    if layer.node.op_type == "Conv":
        return at[0] // (layer.shape[0] // groups) * layer.shape[1] + at[1], at[0], taps
    outputs, inputs = at if is_transposed(layer.node) else at[::-1]
    return inputs, outputs, np.zeros((*at[0].shape, 0), np.int64)


def loss(write: Writer, layer: PairedLayer, runtime: Runtime, raw: ir.Value, zero: int) -> ir.Value:
    """Writes the loss of each output of a layer, as float32 integers of the output's shape.

    Args:
        write: where to.
        layer: the layer; at least one of its pairs can saturate.
        runtime: whose kernels.
        raw: its data as raw codes, float32.
        zero: the raw code of 0.
    """
    if layer.node.op_type == "MatMul" and len(layer.shape) != 2:
        return _loss_of_every_pair(write, raw, layer.weight.codes.astype(np.float32))
    parts = [_loss_of_channels(write, layer, pairs, raw, zero) for pairs in _by_channels(two_taps(layer, runtime))]
    axis = 1 if layer.node.op_type == "Conv" else -1
    return parts[0] if len(parts) == 1 else write("Concat", *parts, axis=axis)


def _by_channels(pairs: TwoTaps) -> Iterator[TwoTaps]:
    """Splits the pairs into blocks of neighbouring output channels, counted from the first of each block."""
    counts = np.bincount(pairs.outputs, minlength=pairs.channels)
    ends, limit, start, done = np.cumsum(counts), max(PAIRS_AT_ONCE, counts.max()), 0, 0
    while start < pairs.channels:
        stop = int(np.searchsorted(ends, done + limit, side="right"))
        part = slice(done, int(ends[stop - 1]))
        outputs = pairs.outputs[part] - start
        yield TwoTaps(pairs.inputs[part], pairs.taps[part], pairs.weights[part], outputs, stop - start)
        start, done = stop, part.stop


def _loss_of_channels(write: Writer, layer: PairedLayer, pairs: TwoTaps, raw: ir.Value, zero: int) -> ir.Value:
    scatter = (pairs.outputs == np.arange(pairs.channels)[:, None]).astype(np.float32)
    if layer.node.op_type != "Conv":
        return write(
            "MatMul", _beyond_sixteen_bits(write, _products(write, pairs, raw)), np.ascontiguousarray(scatter.T)
        )
    lost = _beyond_sixteen_bits(write, _convolved(write, layer, pairs, raw, zero))
    return write("Conv", lost, scatter.reshape(*scatter.shape, *[1] * pairs.taps.shape[2]))


def is_transposed(node: ir.Node) -> bool:
    """Whether a Gemm's weight is [N, K]."""
    return node.attributes.get_int("transB", 0) == 1


def _beyond_sixteen_bits(write: Writer, sums: ir.Value) -> ir.Value:
    return write("Sub", sums, write("Clip", sums, *map(np.float32, SIXTEEN_BITS)))


def _loss_of_every_pair(write: Writer, raw: ir.Value, codes: Array) -> ir.Value:
    """The loss of a product by several matrices, or a vector, from every pair: [..., M, J, N] summed over J."""
    vector = codes.ndim == 1
    codes = codes[:, None] if vector else codes
    count = codes.shape[-2]
    sums = []
    for side in (0, 1):
        places = np.arange(side, count, 2)
        if len(places) < (count + 1) // 2:  # the last one's partner is a weight of 0
            places = np.append(places, 0)
        members = codes[..., places, :] * (np.arange(side, 2 * len(places), 2) < count)[:, None]
        data = write("Unsqueeze", write("Gather", raw, places, axis=-1), np.array([-1]))
        sums.append(write("Mul", data, members[..., None, :, :].astype(np.float32)))
    lost = write("ReduceSum", _beyond_sixteen_bits(write, write("Add", *sums)), np.array([-2]), keepdims=0)
    return write("Squeeze", lost, np.array([-1])) if vector else lost


def _convolved(write: Writer, layer: PairedLayer, pairs: TwoTaps, raw: ir.Value, zero: int) -> ir.Value:
    """Sums of pairs in a convolution; what pads the data is the code of 0, so it is subtracted and added back as a bias."""
    shifted = write("Sub", raw, np.float32(zero))
    members = [
        write("Conv", data, kernels, zero * weights, group=len(weights), **placing(layer.node))
        for data, kernels, weights in _members(write, layer, pairs, shifted)
    ]
    return write("Add", *members)


def _products(write: Writer, pairs: TwoTaps, raw: ir.Value) -> ir.Value:
    """Sums of pairs in a MatMul or Gemm."""
    members = [
        write("Mul", write("Gather", raw, pairs.inputs[:, side], axis=-1), pairs.weights[:, side]) for side in (0, 1)
    ]
    return write("Add", *members)


def _members(
    write: Writer, layer: PairedLayer, pairs: TwoTaps, data: ir.Value
) -> Iterator[tuple[ir.Value, Array, Array]]:
    """For first and second members of pairs: their input channels, one kernel each, 0 but for its tap, and their weights."""
    for side in (0, 1):
        weights = pairs.weights[:, side]
        kernels = np.zeros((len(weights), 1, *layer.shape[2:]), np.float32)
        kernels[(np.arange(len(weights)), 0, *pairs.taps[:, side].T)] = weights
        yield write("Gather", data, pairs.inputs[:, side], axis=1), kernels, weights


def placing(node: ir.Node) -> dict[str, Any]:
    """A convolution's attributes that say which inputs meet in an output."""
    return {name: node.attributes[name].value for name in _PLACING if name in node.attributes}
