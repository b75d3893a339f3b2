"""Gradients of convolutions by data and by weight, as blocked convolutions; dy and results are in the blocked layout."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxqat.autodiff.shapes import reshape, sizes
from onnxqat.graph.ops import BLOCKED, Ops
from onnxqat.training.blocked import weights
from onnxqat.training.blocked.convolution import Convolution, Pair


def can_differentiate(conv: Convolution, size: Pair | None, block: int) -> bool:
    """Whether `by_data` can write the gradient; `size` is height and width of the data, None if unknown."""
    if not conv.fits(block) or any(pad < 0 for pad in _turned_pads(conv)):
        return False
    if conv.strides == (1, 1):
        return True
    if size is None or conv.stride is None or conv.dilations != (1, 1):
        return False
    return all(pad >= 0 for pad in _padded(conv, size)[2:]) and (conv.taps > 1 or not any(conv.pads))


def by_data(op: Ops, dy: ir.Value, weight: ir.Value, conv: Convolution, size: Pair | None, block: int) -> ir.Value:
    """Gradient of the data: a convolution of dy with the turned weight; with a stride, of dy with zeros in between.

    For 3 x 3 windows and stride 2, most of the products with these zeros are left out: one convolution of 2 x 2 windows gives
    the four pixels that each pixel of dy reaches, as channels, and these move to their places.
    """
    if conv.strides == (1, 1):
        return convolved(op, dy, weights.flipped(op, weight, conv, block), conv, _turned_pads(conv))
    assert size is not None
    if is_sub_pixel(conv, size):
        return _sub_pixel(op, dy, weight, conv, size, block)
    if conv.taps == 1 and not conv.depthwise:
        small = convolved(op, dy, weights.flipped(op, weight, conv, block), conv, (0, 0, 0, 0))
        return _spread(op, small, conv, conv.inputs, size, block)
    spread = _spread(op, dy, conv, conv.outputs, size, block)
    return convolved(op, spread, weights.flipped(op, weight, conv, block), conv, _padded(conv, size))


def convolved(op: Ops, x: ir.Value, weight: ir.Value, conv: Convolution, pads: Sequence[int]) -> ir.Value:
    """A blocked convolution of stride 1, dilated and grouped as `conv` is."""
    return op.one(
        "Conv",
        x,
        weight,
        _domain=BLOCKED,
        kernel_shape=conv.kernel,
        pads=pads,
        strides=[1, 1],
        dilations=conv.dilations,
        group=conv.groups,
    )


def _turned_pads(conv: Convolution) -> tuple[int, int, int, int]:
    reach = [dilation * (size - 1) for dilation, size in zip(conv.dilations, conv.kernel, strict=True)]
    top, left, bottom, right = conv.pads
    return reach[0] - top, reach[1] - left, reach[0] - bottom, reach[1] - right


def _padded(conv: Convolution, size: Pair) -> tuple[int, int, int, int]:
    """Pads around dy with its zeros, so that the result has the size of the data."""
    top, left, _, _ = _turned_pads(conv)
    height, width = _result_size(conv, size)
    bottom, right = size[0] - height * conv.strides[0] + conv.pads[0], size[1] - width * conv.strides[1] + conv.pads[1]
    return top, left, bottom, right


def _result_size(conv: Convolution, size: Pair) -> Pair:
    height, width = (
        (size[axis] + conv.pads[axis] + conv.pads[axis + 2] - conv.dilations[axis] * (conv.kernel[axis] - 1) - 1)
        // conv.strides[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def _spread(op: Ops, values: ir.Value, conv: Convolution, channels: int, size: Pair, block: int) -> ir.Value:
    """Puts stride - 1 zeros after each row and each column."""
    (height, width), stride = _result_size(conv, size), conv.strides[0]
    rows = reshape(op, values, [-1, 1, width, 1, block])
    padded = op.Pad(rows, op.ints([0] * 5 + [0, stride - 1, 0, stride - 1, 0]))
    return reshape(op, padded, [-1, channels, height * stride, width * stride])


def is_sub_pixel(conv: Convolution, size: Pair) -> bool:
    """Whether the four parities of a pixel's row and column can be channels: 3 x 3, stride 2, padding 1, even sizes."""
    geometry = (conv.kernel, conv.strides, conv.pads, conv.depthwise)
    return geometry == ((3, 3), (2, 2), (1, 1, 1, 1), False) and size[0] % 2 == size[1] % 2 == 0


def _sub_pixel(op: Ops, dy: ir.Value, weight: ir.Value, conv: Convolution, size: Pair, block: int) -> ir.Value:
    height, width = size[0] // 2, size[1] // 2
    taken = op.one(
        "Conv",
        dy,
        weights.sub_pixel(op, weight, conv, block),
        _domain=BLOCKED,
        kernel_shape=[2, 2],
        pads=[0, 0, 1, 1],
        strides=[1, 1],
        dilations=[1, 1],
        group=1,
    )
    parities = reshape(op, taken, [-1, 2, 2, conv.inputs // block, height, width, block])
    return reshape(op, op.Transpose(parities, perm=[0, 3, 4, 1, 5, 2, 6]), [-1, conv.inputs, *size])


def by_depthwise_weight(op: Ops, dy: ir.Value, x: ir.Value, conv: Convolution) -> ir.Value:
    """Gradient of a depthwise weight: for each sample, a convolution of x with dy as the window, dilated by the stride."""
    samples = _per_sample(op, dy, x, conv)
    total = op.reduce("Sum", samples, [0], keepdims=True)
    windows = op.one("ReorderOutput", total, _domain=BLOCKED, channels=conv.outputs)
    if conv.strides != (1, 1):  # rows that no window reaches may have made it larger
        windows = op.Slice(windows, op.ints([0, 0]), op.ints(conv.kernel), op.ints([2, 3]))
    return reshape(op, windows, [conv.outputs, 1, *conv.kernel])


def by_bias(op: Ops, dy: ir.Value, conv: Convolution) -> ir.Value:
    """Gradient of the bias: dy summed over samples and places, by way of its mean, whose kernel sums vectors."""
    means = op.one("GlobalAveragePool", dy, _domain=BLOCKED)
    places = op.Cast(op.ReduceProd(sizes(op, dy, [2, 3]), keepdims=0), to=ir.DataType.FLOAT)
    total = op.reduce("Sum", means, [0], keepdims=False)
    return reshape(op, op.Mul(total, places), [conv.outputs])


def _per_sample(op: Ops, dy: ir.Value, x: ir.Value, conv: Convolution) -> ir.Value:
    """[N, C, H, W] of both → [N, C, window]."""
    inner = Ops(op.opset)
    data, windows = (ir.Value(name=f"sample_in{i}", type=ir.TensorType(ir.DataType.FLOAT)) for i in (0, 1))
    result = inner.one(
        "Conv",
        inner.Unsqueeze(data, inner.ints([0])),
        inner.Unsqueeze(windows, inner.ints([1])),
        _domain=BLOCKED,
        pads=conv.pads,
        strides=conv.dilations,
        dilations=conv.strides,
        group=conv.groups,
    )
    output = inner.Squeeze(result, inner.ints([0]))
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * 3)
    for number, value in enumerate(value for node in inner.nodes for value in node.outputs):
        value.name = f"sample_{number}"
    imports = {"": op.opset, BLOCKED: 1}
    body = ir.Graph([data, windows], [output], nodes=inner.nodes, opset_imports=imports, name="sample")
    samples = op.one("Scan", x, dy, body=body, num_scan_inputs=2)
    samples.type = ir.TensorType(ir.DataType.FLOAT)
    return samples
