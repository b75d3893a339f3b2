"""Trainable quantizers: ONNX functions whose body is the deployed arithmetic, and the formulas that are their gradients.

A quantizer becomes one call of `FakeQuantize_…(x, scale, zero_point)`, whose body is QuantizeLinear → (Clip) →
DequantizeLinear itself; its gradient is LSQ's (Esser et al. 2020, eqs. 3 and 5, for any zero point). With u = y - x, the gradient
of a code that was not clipped is dx = dy and d y/d scale = u/scale; that of a clipped one is dx = 0 and d y/d scale = y/scale.
The same holds for codes of E4M3 (`numerics.fake_quantize_e4m3_gradient`), but there u does not tell what was clipped: x does.
Four things make it cheap:

- Channels that are not rows (of a MatMul's weight, say), and blocks, are quantized by elementwise operators, to the same bits.
  Blocks get an axis of their own, behind the one that they divide.
- An element is clipped where |u| > scale/2, and QuantizeLinear(u, scale) is 0 exactly where it is not: one pass over
  the data, one byte written. The half is widened by the rounding error of y (`_tie`), or ties would lose their gradient.
- The sum over elements is a dot product for each stretch of a row of the batch, and the sum of these has twice the digits: the
  terms cancel by factors of thousands. Summing dy·u instead of the difference of Σ dy·y and
  Σ dx·x also keeps the digits: y and x are two orders of magnitude larger than u.
- A Relu, or a Clip at 0 and above the quantizer's range, before a quantizer whose zero point is its lowest code does
  nothing that the quantizer does not do by itself. The *rectified* functions take its place: they quantize what comes
  before it, and their gradient is that of the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxqat.autodiff.functions import give_gradient
from onnxqat.autodiff.rule import Call, Custom
from onnxqat.graph.ops import KERNELS, Ops
from onnxqat.graph.qdq import FLOAT8

DOMAIN = "onnxqat"
_GRADIENT, _LEARNED = "_gradient", "_learned"


@dataclass(frozen=True)
class Variant:
    """Properties that the function of a quantizer depends on.

    Attributes:
        dtype: type of the codes.
        bounds: lowest and highest code.
        carrier: lowest and highest number of `dtype`; a Clip of the codes follows where the bounds are narrower.
        axis: channel axis of the scale, or the one that blocks divide; None for one scale.
        rank: rank of the data, needed where the axis is not the first, and where it is 0.
        block: number of elements along the axis that share a scale; 0: no blocks.
        length: number of elements along the axis, in blocks.
        learned: whether the zero point is a float that is trained, and rounded where it is used; of one scale only.
        rectified: whether a Relu or Clip before the quantizer is part of it.
        bounded: whether that has an upper bound.
        stretch: length of the pieces of a row that are summed one by one; None: a row is one piece.
    """

    dtype: ir.DataType
    bounds: tuple[int, int]
    carrier: tuple[int, int]
    axis: int | None = None
    rank: int | None = None
    rectified: bool = False
    bounded: bool = False
    stretch: int | None = None
    block: int = 0
    length: int = 0
    learned: bool = False

    @property
    def on_inner_grids(self) -> bool:
        """Whether scales run along another axis than the first, or blocks."""
        return bool(self.block) or self.axis not in (None, 0)

    @property
    def steps(self) -> int:
        """Number of steps between the lowest and the highest code."""
        return self.bounds[1] - self.bounds[0]

    @property
    def name(self) -> str:
        """Name of the function, the same for the same variant."""
        low, high = (str(bound).replace("-", "m") for bound in self.bounds)
        axis = "" if self.axis is None else f"_axis{self.axis}of{self.rank or 'any'}"
        axis = "_scalar" if self.rank == 0 else axis
        axis += f"_blocks{self.block}of{self.length}" if self.block else ""
        axis += "" if self.stretch is None else f"_by{self.stretch}"
        axis += _LEARNED if self.learned else ""
        before = "Clipped" if self.bounded else "Rectified" if self.rectified else ""
        return f"{before}FakeQuantize_{self.dtype.name.lower()}_{low}_{high}{axis}"


def is_call(node: ir.Node) -> bool:
    """Whether the node is a call of one of these functions (not of a gradient)."""
    return node.domain == DOMAIN and not node.op_type.endswith(_GRADIENT)


def is_gradient(node: ir.Node) -> bool:
    """Whether the node is a call of one of their gradients: (dy, x, y, scale, …) → (dx, dscale)."""
    return node.domain == DOMAIN and node.op_type.endswith(_GRADIENT)


def function(variant: Variant, opset: int) -> ir.Function:
    """The function of a variant, with its gradient.

    Its inputs are x, scale and zero point, and the upper bound of what comes before it, where there is one.
    """
    x, scale, zero_point, ceiling = (ir.val(name) for name in ("x", "scale", "zero_point", "ceiling"))
    op = Ops(opset)
    codes_zero = _rounded_to_code(op, variant, zero_point) if variant.learned else zero_point
    on_grid = _on_inner_grids if variant.on_inner_grids and variant.dtype != FLOAT8 else _on_grid
    y = on_grid(op, variant, x, scale, codes_zero)
    inputs = [x, scale, zero_point] + ([ceiling] if variant.bounded else [])
    forward = _function(variant.name, inputs, [y], op)
    give_gradient(
        forward,
        Custom(_called, inputs=frozenset({0, 1, 2} if variant.learned else {0, 1})),
        [_gradient(variant, opset)],
    )
    return forward


def _rounded_to_code(op: Ops, variant: Variant, zero_point: ir.Value) -> ir.Value:
    """The integer of a zero point that is a float: half to even, as in the model that ships."""
    inside = op.Clip(zero_point, *(_float(op, bound) for bound in variant.bounds))
    return op.one("QuantizeLinear", inside, _float(op, 1.0), _number(op, 0, variant.dtype))


def _on_grid(op: Ops, variant: Variant, x: ir.Value, scale: ir.Value, zero_point: ir.Value) -> ir.Value:
    along = {} if variant.axis is None else {"axis": variant.axis}
    codes = op.one("QuantizeLinear", x, scale, zero_point, **along)
    if variant.bounds != variant.carrier:
        codes = op.Clip(codes, *(_number(op, bound, variant.dtype) for bound in variant.bounds))
    return op.one("DequantizeLinear", codes, scale, zero_point, **along)


def _on_inner_grids(op: Ops, variant: Variant, x: ir.Value, scale: ir.Value, zero_point: ir.Value) -> ir.Value:
    """The same to the bit where channels are not rows: there QuantizeLinear takes 50 ns for each element."""
    scales = _per_channel(op, variant, scale)
    # not a Cast: ONNX Runtime 1.19 has none from 4 bits
    zeros = _per_channel(op, variant, op.one("DequantizeLinear", zero_point, _float(op, 1.0)))
    low, high = (op.Sub(_float(op, bound), zeros) for bound in variant.bounds)
    codes = op.Min(op.Max(op.Round(op.Div(_in_blocks(op, variant, x), scales)), low), high)
    return _out_of_blocks(op, variant, op.Mul(codes, scales), x)


def _in_blocks(op: Ops, variant: Variant, x: ir.Value) -> ir.Value:
    """The data with an axis for the elements of a block, zeros where the last one is not full; without blocks, as it is."""
    if not variant.block:
        return x
    assert variant.axis is not None
    assert variant.rank is not None
    missing = -variant.length % variant.block
    if missing:
        ends = [0] * (2 * variant.rank)
        ends[variant.rank + variant.axis] = missing
        x = op.Pad(x, op.ints(ends))
    count = (variant.length + missing) // variant.block
    return op.Reshape(x, op.ints([*[0] * variant.axis, count, variant.block, *_last(variant)]))


def _out_of_blocks(op: Ops, variant: Variant, y: ir.Value, x: ir.Value) -> ir.Value:
    """The inverse, for data of the shape of `x`."""
    if not variant.block:
        return y
    assert variant.axis is not None
    if variant.length % variant.block:
        padded = variant.length + -variant.length % variant.block
        flat = op.Reshape(y, op.ints([*[0] * variant.axis, padded, *_last(variant)]))
        return op.Slice(flat, op.ints([0]), op.ints([variant.length]), op.ints([variant.axis]))
    return op.Reshape(y, op.Shape(x))


def _last(variant: Variant) -> list[int]:
    """Sizes of the axes behind the blocks, for a Reshape: in blocks the data is a matrix."""
    return [-1] * (variant.rank - 1 - variant.axis)  # type: ignore[operator]


def _per_channel(op: Ops, variant: Variant, vector: ir.Value) -> ir.Value:
    """A number for each channel or block, in a shape that broadcasts over the data."""
    assert variant.axis is not None
    assert variant.rank is not None
    if variant.block:
        return op.Unsqueeze(vector, op.ints([variant.axis + 1]))
    return op.Reshape(vector, op.ints([-1] + [1] * (variant.rank - 1 - variant.axis)))


def _called(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value]:
    """A call of the gradient function: (dy, x, y, scale, and the ceiling where there is one) → (dx, dscale).

    Where the zero point is learned, its gradient follows.
    """
    inputs = [dy, call.required(0), call.outputs[0], call.required(1), *call.inputs[3:]]
    outputs = 3 if call.op_type.endswith(_LEARNED) else 2
    return op.many(f"{call.op_type}{_GRADIENT}", *inputs, _domain=DOMAIN, _outputs=outputs)


def _gradient(variant: Variant, opset: int) -> ir.Function:
    """The gradient function: its body follows the shape of the scale."""
    dy, x, y, scale = (ir.val(name) for name in ("dy", "x", "y", "scale"))
    ceiling = ir.val("ceiling") if variant.bounded else None
    op = Ops(opset)
    if variant.rectified:
        dx, total = _in_rows(op, variant, [dy, x, y], lambda *rows: _rectified(op, variant, scale, ceiling, *rows))
        dscale = op.Div(_rounded(op, op.ReduceSum(total, keepdims=0)), scale)
    elif not variant.on_inner_grids:
        dx, total = _in_rows(op, variant, [dy, x, y], lambda *rows: _straight_through(op, variant, scale, *rows))
        axes = None if variant.axis is None else [1, 2, 3]
        dscale = op.Div(_rounded(op, op.reduce("Sum", total, axes, keepdims=False)), scale)
    else:
        dx, dscale = _along_inner_axis(op, variant, scale, dy, x, y)
    inputs = [dy, x, y, scale] + ([] if ceiling is None else [ceiling])
    outputs = [dx, dscale] + ([_of_zero_point(op, scale, dy, dx)] if variant.learned else [])
    return _function(f"{variant.name}{_GRADIENT}", inputs, outputs, op)


def _of_zero_point(op: Ops, scale: ir.Value, dy: ir.Value, dx: ir.Value) -> ir.Value:
    """-scale · Σ dy over clipped elements: one code up moves the ends of the range by a scale down (Bhalgat et al. 2020, eq. 7).

    The paper's offset is β = scale · (qmin - zero point), by which the derivative is 1 where x is clipped and 0 elsewhere.
    """
    clipped = op.reduce("Sum", op.Flatten(op.Sub(dy, dx)), [1], keepdims=False)
    total = op.reduce("Sum", op.Cast(clipped, to=ir.DataType.DOUBLE), None, keepdims=False)
    return op.Neg(op.Mul(_rounded(op, total), scale))


def _in_rows(
    op: Ops, variant: Variant, tensors: list[ir.Value], body: Callable[..., tuple[ir.Value, ir.Value]]
) -> tuple[ir.Value, ir.Value]:
    """Runs `body` on [first dimension, rest]: a view without copy, and no slow loops over trailing dimensions of 1."""
    dx, total = body(*(op.Flatten(tensor, axis=0 if variant.rank == 0 else 1) for tensor in tensors))
    return op.Reshape(dx, op.Shape(tensors[0])), total


def _straight_through(
    op: Ops, variant: Variant, scale: ir.Value, dy: ir.Value, x: ir.Value, y: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """dx, and per row Σ dy · (u inside, y outside)."""
    u, inside, outside = _masks(op, variant, scale, x, y)
    dx = op.masked(dy, inside)
    return dx, op.Add(_dot(op, variant, dx, u), _dot(op, variant, dy, op.masked(y, outside)))


def _rectified(
    op: Ops,
    variant: Variant,
    scale: ir.Value,
    ceiling: ir.Value | None,
    dy: ir.Value,
    x: ir.Value,
    y: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """The same for x before its Relu or Clip.

    Nothing passes below 0, and what is cut there adds nothing (y = 0). Nothing passes above the ceiling or the quantizer's
    range either; what is cut there adds y where the range ends first, and y - ceiling where the ceiling does.
    """
    reach = op.Mul(scale, _float(op, variant.steps + 0.5 + variant.steps * 2.0**-23))
    bound = reach if ceiling is None else op.Min(ceiling, reach)
    below = op.Less(x, bound)
    inside = op.And(below, op.Greater(x, _float(op, 0.0)))
    if ceiling is None:
        follows = op.masked(x, inside)
    else:
        follows = op.masked(op.Clip(x, _float(op, 0.0), bound), op.Or(below, op.Less(ceiling, reach)))
    return op.masked(dy, inside), _dot(op, variant, dy, op.Sub(y, follows))


def _along_inner_axis(
    op: Ops, variant: Variant, scale: ir.Value, dy: ir.Value, x: ir.Value, y: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The same where channels are not rows: dx, and the gradient of the scale."""
    assert variant.axis is not None
    assert variant.rank is not None
    data = x
    dy, x, y = (_in_blocks(op, variant, tensor) for tensor in (dy, x, y))
    u = op.Sub(y, x)
    half = op.Mul(_per_channel(op, variant, _tie(op, variant, scale)), _float(op, 0.5))
    inside = op.LessOrEqual(op.Abs(u), half)
    if variant.dtype == FLOAT8:
        inside = op.LessOrEqual(op.Abs(x), op.Mul(_per_channel(op, variant, scale), _float(op, variant.bounds[1])))
    dx, summands = op.masked(dy, inside), op.Mul(dy, op.Sub(y, op.masked(x, inside)))
    others = [axis for axis in range(variant.rank) if axis != variant.axis]
    if variant.block:
        others = [variant.axis + 1]
    return _out_of_blocks(op, variant, dx, data), op.Div(op.reduce("Sum", summands, others, keepdims=False), scale)


def _masks(op: Ops, variant: Variant, scale: ir.Value, x: ir.Value, y: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Residual u = y - x, and which elements lie inside and outside the quantizer's range."""
    u = op.Sub(y, x)
    if variant.dtype == FLOAT8:
        scales = scale if variant.axis is None else op.Unsqueeze(scale, op.ints([1]))
        outside = op.Greater(op.Abs(x), op.Mul(scales, _float(op, variant.bounds[1])))
        return u, op.Not(outside), outside
    if variant.axis is None:
        codes = op.one("QuantizeLinear", u, _tie(op, variant, scale), _number(op, 0, ir.DataType.INT8))
    else:
        zeros = op.ConstantOfShape(op.Shape(scale), value=ir.tensor([0], dtype=ir.DataType.INT8))
        codes = op.one("QuantizeLinear", u, _tie(op, variant, scale), zeros, axis=0)
    outside = op.Cast(codes, to=ir.DataType.BOOL)
    return u, op.Equal(outside, op.Constant(value=ir.tensor(False))), outside


def _tie(op: Ops, variant: Variant, scale: ir.Value) -> ir.Value:
    """The scale whose half is scale · (½ + steps · 2⁻²³): y is off by up to half a unit in its last place."""
    return op.Mul(scale, _float(op, 1 + variant.steps * 2.0**-22))


def _dot(op: Ops, variant: Variant, a: ir.Value, b: ir.Value) -> ir.Value:
    """Dot products of the stretches of rows [N, K] · [N, K], in double precision: [rows, stretches, 1, 1]."""
    if variant.stretch is None:
        a, b = (op.Unsqueeze(x, op.ints([1, 2])) for x in (a, b))
    else:
        rows = [-1, 1] if variant.axis is None else [0, -1]  # a batch may be empty, a weight is not
        a, b = (op.Reshape(x, op.ints([*rows, 1, variant.stretch])) for x in (a, b))
    b.type, b.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * 4)
    return op.Cast(op.kernel("FusedMatMul", a, b, transB=1)[0], to=ir.DataType.DOUBLE)


def _rounded(op: Ops, total: ir.Value) -> ir.Value:
    return op.Cast(total, to=ir.DataType.FLOAT)


def _float(op: Ops, number: float) -> ir.Value:
    return op.Constant(value=ir.tensor(np.float32(number)))


def _number(op: Ops, number: int, dtype: ir.DataType) -> ir.Value:
    return op.Constant(value=ir.tensor(number, dtype=dtype))


def _function(name: str, inputs: list[ir.Value], outputs: list[ir.Value], op: Ops) -> ir.Function:
    for number, node in enumerate(op.nodes):
        node.name = f"{node.op_type}_{number}"
    imports = {"": op.opset, KERNELS: 1}
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports=imports, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=())
