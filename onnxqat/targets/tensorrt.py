"""TensorRT, by explicit quantization: a pair at everything that enters a fused kernel, none inside it and none behind.

Sources: NVIDIA's rules for the placement of pairs, the parser of TensorRT 10.1 (onnx-tensorrt), and NVIDIA's own quantizer,
`nvidia-modelopt`, with which the tests compare. TensorRT 8.6 has run its models on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.targets.facts import (
    X86,
    Activations,
    Biases,
    Limits,
    Operators,
    Placement,
    Target,
    Weights,
    Widths,
    operators,
)

#: Fewer channels, or a smaller inner dimension, and float16 is faster (thresholds of NVIDIA's quantizer).
LEAST_CHANNELS = 16
#: Channels that integer kernels of convolutions take at a time.
CHANNEL_VECTOR = 8
LARGEST_RANK = 8
#: What the fused kernel of attention on integers takes.
HEAD_SIZES, LONGEST = (16, 32, 64), 512
#: What the one on numbers of E4M3 takes, and the largest window of a convolution on them.
FLOAT8_HEADS, LARGEST_WINDOW = range(9, 257), 32
#: Nodes that exporters write between the first product of attention and its Softmax: scale and mask.
SCALED = 4

_AVERAGES = operators("AveragePool GlobalAveragePool")
#: Operators with integers of their own, for which the parser has no importer.
_NOT_IMPORTED = operators("QLinearConv QLinearMatMul ConvInteger MatMulInteger DynamicQuantizeLinear")


def _too_small(node: ir.Node) -> str:
    if node.op_type == "Conv":
        return next(_of_convolution(node), "")
    if node.op_type == "ConvTranspose":
        weight = constant(node.inputs[1])
        return "" if weight is None or weight.ndim < 5 else "TensorRT runs transposed convolutions in 3-D in float16"
    return next(_of_product(node), "") if node.op_type in ("MatMul", "Gemm") else ""


def _of_convolution(node: ir.Node) -> Iterator[str]:
    weight = constant(node.inputs[1])
    if weight is None:
        return
    group, kernel = node.attributes.get_int("group", 1), weight.shape[2:]
    outputs, inputs = weight.shape[:2]
    if min(outputs, inputs) >= LEAST_CHANNELS:
        return
    if group > 1:
        if outputs % CHANNEL_VECTOR or min(kernel, default=0) < 3:
            yield f"its {outputs} channels in {group} groups, with a kernel of {list(kernel)}, are faster in float16"
        return
    vectors = not (outputs % CHANNEL_VECTOR and inputs % CHANNEL_VECTOR) and len(set(kernel)) <= 1
    data = node.inputs[0]
    first = data is not None and data.is_graph_input()
    if not (vectors and (first or max(outputs, inputs) >= LEAST_CHANNELS)):
        yield f"its {inputs} channels in and {outputs} out are few, and faster in float16"


def _of_product(node: ir.Node, *, float8: bool = False) -> Iterator[str]:
    """A product of matrices [M, K] and [K, N]."""
    turned = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    shapes = [_last_two(value, turn) for value, turn in zip(node.inputs[:2], turned, strict=True)]
    (rows, inner), (_, columns) = shapes
    if rows == 1 or columns == 1:
        yield "it multiplies a matrix by a vector, which is faster in float16"
    inner = shapes[1][0] if inner is None else inner
    if _in_attention(node):
        yield from _of_attention(node, inner, columns, float8=float8)
    for what, size in (("inner dimension", inner), ("number of columns", columns)):
        if size is not None and size < LEAST_CHANNELS:
            yield f"its {what} is {size}, and products with fewer than {LEAST_CHANNELS} are faster in float16"


def _in_attention(node: ir.Node) -> bool:
    """Whether it is one of the two products around a Softmax, whose operands are both computed."""
    if any(value is not None and constant(value) is not None for value in node.inputs[:2]):
        return False
    above = [value.producer() for value in node.inputs[:1] if value is not None]
    below: ir.Node | None = node
    for _ in range(SCALED):
        users = {user for user, _ in below.outputs[0].uses()} if below is not None else set()
        below = users.pop() if len(users) == 1 else None
        if below is not None and below.op_type == "Softmax":
            return True
    return any(one is not None and one.op_type == "Softmax" for one in above)


def _of_attention(node: ir.Node, inner: int | None, columns: int | None, *, float8: bool) -> Iterator[str]:
    """The fused kernel takes both products or none, so both say the same."""
    data = node.inputs[0]
    producer = None if data is None else data.producer()
    behind = producer is not None and producer.op_type == "Softmax"
    size, length = (columns, inner) if behind else (inner, columns)
    if size is not None and size not in (FLOAT8_HEADS if float8 else HEAD_SIZES):
        taken = "9 to 256 in fp8" if float8 else ", ".join(map(str, HEAD_SIZES))
        yield f"attention heads have size {size}, and the fused kernel takes {taken}"
    if length is not None and length > LONGEST and not float8:
        yield f"attention is over {length} positions, and the fused integer kernel takes {LONGEST}"


def _last_two(value: ir.Value | None, turned: int) -> tuple[int | None, int | None]:
    shape = None if value is None else value.shape
    sizes: list[int | None] = [size if isinstance(size, int | np.integer) else None for size in shape or ()][-2:]
    first, second = [None] * (2 - len(sizes)) + sizes
    return (second, first) if turned else (first, second)


def _refusal(node: ir.Node) -> str:
    return next(_refusals(node), "")


def _refusals(node: ir.Node) -> Iterator[str]:
    if node.op_type in _NOT_IMPORTED:
        yield "is not imported; give a model with QuantizeLinear and DequantizeLinear around float operators"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.shape is not None and value.shape.rank() > LARGEST_RANK:
            yield f"has {value.shape.rank()} axes at {value.name!r}, and TensorRT takes {LARGEST_RANK}; reshape it there"


def _too_small_for_float8(node: ir.Node) -> str:
    if node.op_type == "Conv":
        return next(_of_float8_convolution(node), "")
    return next(_of_product(node, float8=True), "") if node.op_type in ("MatMul", "Gemm") else ""


def _of_float8_convolution(node: ir.Node) -> Iterator[str]:
    weight = constant(node.inputs[1])
    if weight is None:
        return
    (outputs, inputs), window = weight.shape[:2], int(np.prod(weight.shape[2:]))
    if min(outputs, inputs) <= LEAST_CHANNELS:
        yield f"its {inputs} channels in and {outputs} out are few, and faster in float16 than in fp8"
    if window > LARGEST_WINDOW:
        yield f"its window has {window} elements, and fp8 kernels take {LARGEST_WINDOW}"


_INTEGERS = Target(
    name="tensorrt",
    runtime="ort",
    package="onnxruntime",
    title="TensorRT",
    operators=Operators(
        weighted=operators("Conv ConvTranspose Gemm MatMul"),
        integer=operators("Add") | _AVERAGES,
        absorbs=operators(
            "Relu Clip LeakyRelu Elu Selu Sigmoid Tanh HardSigmoid HardSwish Gelu Mish Softplus Softsign ThresholdedRelu"
        ),
        between=operators("HardSwish Gelu Swish Mish"),
        # a pair between Pad and Conv would keep the Pad from becoming a part of the convolution
        passes=operators(
            "MaxPool Reshape Transpose Squeeze Unsqueeze Split Slice Gather Flatten DepthToSpace SpaceToDepth Expand Tile "
            "Resize Pad"
        ),
        joins=operators("Concat"),
    ),
    placement=Placement(
        writes=_AVERAGES, accumulates=operators("Conv ConvTranspose"), accumulates_one=True, products=True
    ),
    activations=Activations(symmetric=True, signed=True, unsigned=False),
    widths=Widths(taken=frozenset({8})),
    weights=Weights(
        products=frozenset({("int8", "int8"), ("float8e4m3fn", "float8e4m3fn")}),
        narrow=True,
        per_tensor=operators("ConvTranspose"),
        block_sizes=frozenset({64, 128}),
        packs_codes=False,
    ),
    biases=Biases(integer=False, reads_int32=False),
    limits=Limits(refusal=_refusal, too_small=_too_small, symmetric_only=True, clips_codes=False),
    x86=X86(adds_pairs=False),
    simulated=True,
)

#: NVIDIA's quantizer has fp8 for these operators alone.
_FLOAT8 = replace(
    _INTEGERS,
    operators=replace(_INTEGERS.operators, weighted=operators("Conv Gemm MatMul"), integer=operators("Add")),
    placement=replace(_INTEGERS.placement, writes=frozenset(), accumulates=operators("Conv")),
    weights=replace(_INTEGERS.weights, block_sizes=frozenset()),
    limits=replace(_INTEGERS.limits, too_small=_too_small_for_float8),
)

TARGET = replace(_INTEGERS, float8=_FLOAT8)
