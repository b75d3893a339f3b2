"""The bounds that weights and biases set to scales, as nodes: what `quantizers.pair_safety` does after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.biases import Bias, integer_biases
from onnxqat.graph.constants import constant
from onnxqat.graph.ops import Ops
from onnxqat.graph.pairs import HeldWeight, PairedLayer, Pairing, held_weights
from onnxqat.numerics import PAIR_CODE
from onnxqat.training.quantizers.pair_safety import LEEWAY
from onnxqat.training.training_graph.parameters import Layout, Parameter

#: Low and high of weights and of sums of pairs: the four values of `numerics.Reach`.
_Reach = Sequence[ir.Value]


def held(op: Ops, qdq: ir.Model, layout: Layout, parameters: ir.Value) -> ir.Value:
    """Writes what raises the scales in a flat array that its weights and biases have outgrown; returns the new array.

    Args:
        op: writer of nodes.
        qdq: the model.
        layout: place of each parameter.
        parameters: flat array.
    """
    places = {one.name: one for one in layout.parameters}

    def now(value: ir.Value) -> ir.Value:
        """A parameter, or what is not trained, as it is."""
        place, array = places.get(str(value.name)), constant(value)
        assert array is not None
        return op.Constant(value=ir.tensor(array)) if place is None else _part(op, parameters, place)

    least: dict[str, list[ir.Value]] = {}
    for weight in held_weights(qdq):
        least.setdefault(str(weight.quantizer.scale.name), []).append(_least_of_weight(op, weight, now))
    for bias in integer_biases(qdq):
        least.setdefault(str(bias.weight.scale.name), []).append(_least_of_bias(op, bias, now))
    bounded = [one for one in layout.parameters if one.name in least]
    if not bounded:
        return parameters
    pieces, reached = [], 0
    for place in bounded:
        scale, bound = _part(op, parameters, place), _all(op.Max, least[place.name])
        fits = op.LessOrEqual(bound, op.Mul(scale, float(LEEWAY)))
        raised = op.Where(fits, scale, op.Max(scale, op.Reshape(bound, op.ints(place.shape))))
        pieces += [_stretch(op, parameters, reached, place.offset), op.Reshape(raised, op.ints([-1]))]
        reached = place.offset + place.size
    return op.Concat(*pieces, _stretch(op, parameters, reached, layout.size), axis=0)


def _least_of_weight(op: Ops, held: HeldWeight, now: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """`numerics.pair_safe_scale`, in the shape of the scale."""
    weight, shape = now(held.quantizer.source), held.quantizer.scales.shape
    reaches = [_of_layer(op, layer, weight) for layer in held.layers] or [_of_singles(op, held, weight)]
    kinds = (op.Min, op.Max) * 2
    reach = [_all(kind, values) for kind, values in zip(kinds, zip(*reaches, strict=True), strict=False)]
    z = held.quantizer.zero_points.astype(np.float64).reshape(-1)
    codes = [-(PAIR_CODE + z), PAIR_CODE - z, -(PAIR_CODE + 2 * z), PAIR_CODE - 2 * z]
    bounds = [
        op.Div(op.Cast(value, to=ir.DataType.DOUBLE), op.Constant(value=ir.tensor(code)))
        for value, code in zip(reach, codes, strict=False)
    ]
    return op.Reshape(op.Cast(op.Max(*bounds, 0.0), to=ir.DataType.FLOAT), op.ints(shape))


def _of_layer(op: Ops, layer: PairedLayer, weight: ir.Value) -> _Reach:
    """`PairedLayer.reach`: [C] each, or [1] where the scale is one."""
    groups = 1 if layer.weight.axis is None else layer.blocks(np.empty(layer.shape, np.int8)).shape[0]
    rows = _rows(op, layer, weight)
    ends = [_ends(op, rows, layer, groups)]
    for pairing in layer.every_pairing:
        first, second = (op.Gather(rows, op.ints(columns), axis=1) for columns in _columns(layer, pairing).T.tolist())
        ends.append(_ends(op, op.Add(first, second), layer, groups))
    (low, high), *sums = ends
    return [low, high, _all(op.Min, [one[0] for one in sums]), _all(op.Max, [one[1] for one in sums])]


def _rows(op: Ops, layer: PairedLayer, weight: ir.Value) -> ir.Value:
    """The weights that each sum of products reads, [G · C, I · T], and a column of 0, the partner of an odd end."""
    size = int(np.prod(layer.shape))
    places = layer.blocks(np.arange(size).reshape(layer.shape))
    order = sorted(range(places.ndim), key=lambda axis: (-places.strides[axis], places.shape[axis]))
    sizes, back = [places.shape[axis] for axis in order], [order.index(axis) for axis in range(places.ndim)]
    assert np.array_equal(np.arange(size).reshape(sizes).transpose(back), places)
    blocks = op.Transpose(op.Reshape(weight, op.ints(sizes)), perm=back)
    rows, width = places.shape[0] * places.shape[1], places.shape[2] * places.shape[3]
    zeros = op.Constant(value=ir.tensor(np.zeros((rows, 1), np.float32)))
    return op.Concat(op.Reshape(blocks, op.ints([rows, width])), zeros, axis=1)


def _columns(layer: PairedLayer, pairing: Pairing) -> NDArray[np.int64]:
    """Columns of `_rows` that meet in a pair, [P, 2]; every row pairs alike."""
    places = np.arange(int(np.prod(layer.shape))).reshape(layer.shape)
    of_first = layer.blocks(places)[0, 0].reshape(-1)
    column = {place: number for number, place in enumerate(of_first.tolist())} | {-1: of_first.size}
    return np.array([[column[place] for place in pair] for pair in layer.pairs(places, pairing, -1)[0].tolist()])


def _ends(op: Ops, rows: ir.Value, layer: PairedLayer, groups: int) -> tuple[ir.Value, ir.Value]:
    """Lowest and highest number of each output channel of [G · C, …], or of all."""
    shape = [1, -1] if layer.weight.axis is None else [groups, -1]
    axes = [1] if layer.weight.axis is None else [0]
    found = []
    for kind in ("Min", "Max"):
        of_rows = op.Reshape(op.reduce(kind, rows, [1], keepdims=False), op.ints(shape))
        found.append(op.reduce(kind, of_rows, axes, keepdims=False))
    return found[0], found[1]


def _of_singles(op: Ops, held: HeldWeight, weight: ir.Value) -> _Reach:
    """`HeldWeight.reach` of weights that no kernel adds in pairs."""
    axis = held.quantizer.axis
    rank = len(held.quantizer.source.shape or ())
    axes = None if axis is None else [number for number in range(rank) if number != axis]
    return [op.Reshape(op.reduce(kind, weight, axes, keepdims=False), op.ints([-1])) for kind in ("Min", "Max")]


def _least_of_bias(op: Ops, bias: Bias, now: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """`Bias.smallest_weight_scale`."""
    shape = bias.weight.scales.shape
    needed = op.Max(op.Mul(op.Abs(now(bias.value)), float(np.float32(1 / bias.room))), float(np.finfo(np.float32).tiny))
    if bias.weight.scales.size == 1:
        needed = op.reduce("Max", needed, None, keepdims=False)
    return op.Div(op.Reshape(needed, op.ints(shape)), op.Reshape(now(bias.data.scale), op.ints([])))


def _part(op: Ops, flat: ir.Value, place: Parameter) -> ir.Value:
    return op.Reshape(_stretch(op, flat, place.offset, place.offset + place.size), op.ints(place.shape))


def _stretch(op: Ops, flat: ir.Value, start: int, stop: int) -> ir.Value:
    return op.Slice(flat, op.ints([start]), op.ints([stop]))


def _all(operator: Callable[..., ir.Value], values: Sequence[ir.Value]) -> ir.Value:
    return reduce(operator, values)
