"""Recognizes convolutions and their gradients, the only place that knows how a training graph writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxqat.graph.ops import KERNELS

Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """Geometry of a two-dimensional convolution.

    Attributes:
        inputs: channels of the data.
        outputs: channels of the result.
        kernel: height and width of the window.
        strides: along both axes.
        dilations: along both axes.
        pads: top, left, bottom, right.
        groups: number of groups of channels.
    """

    inputs: int
    outputs: int
    kernel: Pair
    strides: Pair
    dilations: Pair
    pads: tuple[int, int, int, int]
    groups: int

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved with a window of its own."""
        return 1 < self.groups == self.inputs == self.outputs

    @property
    def taps(self) -> int:
        """Number of weights of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def stride(self) -> int | None:
        """The stride, where it is the same along both axes."""
        return self.strides[0] if self.strides[0] == self.strides[1] else None

    def fits(self, block: int) -> bool:
        """Whether both sides of the convolution can be in the blocked layout."""
        whole = self.inputs % block == 0 and self.outputs % block == 0
        return whole and (self.groups == 1 or self.depthwise)

    def reads_plain(self, block: int) -> bool:
        """Whether the blocked convolution takes data in the plain layout: too few channels for a block, as images have."""
        return self.groups == 1 and self.inputs < block and self.outputs % block == 0


@dataclass(frozen=True)
class Gradient:
    """The gradient of a convolution in a training graph.

    Attributes:
        dy: gradient of the result.
        x: the data.
        weight: the weight.
        results: gradients of data, weight and bias; None where nobody reads one.
    """

    dy: ir.Value
    x: ir.Value
    weight: ir.Value
    results: tuple[ir.Value | None, ir.Value | None, ir.Value | None]


def convolution_of(node: ir.Node, weight: ir.Value | None) -> Convolution | None:
    """Returns the geometry that the attributes of a node and its weight state; None where it is not a known 2-D float one."""
    shape = None if weight is None or weight.shape is None else weight.shape
    if shape is None or len(shape) != 4 or weight is None or weight.dtype != ir.DataType.FLOAT:
        return None
    sizes = [size for size in shape if isinstance(size, int)]
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if len(sizes) != 4 or automatic != "NOTSET":
        return None
    groups = node.attributes.get_int("group", 1) or 1
    strides, dilations = (_ints(node, name, [1, 1]) for name in ("strides", "dilations"))
    pads = _ints(node, "pads", [0] * 4)
    return Convolution(
        sizes[1] * groups,
        sizes[0],
        (sizes[2], sizes[3]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        groups,
    )


def forward_of(node: ir.Node) -> Convolution | None:
    """Returns the geometry of a convolution, None if the node is none."""
    is_convolution = node.op_type == "Conv" and not node.domain
    return convolution_of(node, node.inputs[1]) if is_convolution else None


def gradient_of(node: ir.Node) -> tuple[Convolution, Gradient] | None:
    """Returns geometry and values of a convolution's gradient, None if the node is none."""
    if (node.domain, node.op_type) != (KERNELS, "ConvGrad"):
        return None
    dy, x, weight = node.inputs[:3]
    convolution = convolution_of(node, weight)
    if convolution is None or dy is None or x is None or weight is None:
        return None
    wanted = [value if value.name and (value.uses() or value.is_graph_output()) else None for value in node.outputs]
    dx, dw, db = [*wanted, None, None][:3]
    return convolution, Gradient(dy, x, weight, (dx, dw, db))


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> Sequence[int]:
    found = node.attributes.get_ints(name, None)
    return default if found is None else found
