"""Qualcomm's NPU (HTP), through ONNX Runtime's execution provider QNN.

A node becomes one integer operator of the NPU where a pair stands at everything that it reads and writes; where one is missing
it runs in float16, or on the CPU. Sources: the provider's node units; checked against the NPU's emulator in the wheel of
`onnxruntime-qnn` for x86-64, of 2.7.0 with ONNX Runtime 1.32, by the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.targets.facts import X86, Limits, Operators, Placement, Ranges, Target, Weights, Widths, operators

LARGEST_RANK = 5

_WEIGHTED = operators("Conv ConvTranspose Gemm MatMul")
_INTEGER = operators(
    "Add Sub Mul Div Min Max Pow PRelu Concat AveragePool GlobalAveragePool ReduceMean ReduceSum LeakyRelu Sigmoid Tanh "
    "HardSigmoid HardSwish Gelu Elu Exp Log CumSum Abs Neg Sin Floor Sqrt Reciprocal Softplus Softmax LogSoftmax LpNormalization "
    "LayerNormalization InstanceNormalization"
)


def _refusal(node: ir.Node) -> str:
    """Convolutions and pools that the NPU does not take end the creation of the session; others would go to the CPU."""
    return next(_refusals(node), "")


def _refusals(node: ir.Node) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.shape is not None and value.shape.rank() > LARGEST_RANK:
            yield f"has {value.shape.rank()} axes at {value.name!r}, and the NPU takes {LARGEST_RANK}; reshape it there"
    if node.op_type == "ConvTranspose" and any(step != 1 for step in node.attributes.get_ints("dilations", ())):
        yield "is dilated, which the NPU does not take; leave out the dilations"


TARGET = Target(
    name="qnn",
    runtime="qnn",
    package="onnxruntime-qnn",
    title="QNN",
    operators=Operators(
        weighted=_WEIGHTED,
        integer=_INTEGER,
        absorbs=operators("Relu Clip"),
        repeats=operators(
            "MaxPool GlobalMaxPool ReduceMax ReduceMin Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Gather "
            "GatherElements Expand Tile Resize Pad DepthToSpace SpaceToDepth"
        ),
        single=operators("Gelu LayerNormalization"),
        decomposed=operators("Swish HardSwish"),
    ),
    placement=Placement(whole=True, writes=_WEIGHTED | _INTEGER),
    widths=Widths(
        taken=frozenset({8, 16}),
        simulated=frozenset(),
        only_narrow=operators("PRelu Log Softplus"),
        narrow_operands={"MatMul": 1},
    ),
    ranges=Ranges(
        fixed={
            "Softmax": {8: (1 / 255, 0), 16: (1 / 65535, 0)},
            "Sigmoid": {8: (1 / 255, 0), 16: (1 / 65535, 0)},
            "HardSigmoid": {16: (1 / 65535, 0)},
            "Tanh": {8: (1 / 127.5, 128), 16: (1 / 32768, 32768)},
        },
        least=1e-4,
    ),
    weights=Weights(
        products=frozenset((data, weight) for data in ("uint8", "uint16") for weight in ("int8", "uint8", "int4"))
    ),
    limits=Limits(refusal=_refusal, last_axis=operators("CumSum"), static=True, clips_codes=False, contrib=True),
    x86=X86(adds_pairs=False),
)
