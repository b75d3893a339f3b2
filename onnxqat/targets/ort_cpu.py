"""ONNX Runtime on CPUs.

Sources: its Q/DQ selectors and transformers; checked against its own optimized graphs, of 1.19.2 and 1.32 on x86, by the tests.
"""

from __future__ import annotations

from onnxqat.targets.facts import Limits, Operators, Placement, Target, Weights, operators

_INTEGER = operators("Add Mul Concat AveragePool GlobalAveragePool LeakyRelu Sigmoid")
#: Around these a value has one scale, whatever the granularity: ONNX Runtime refuses to load a model where it has several.
PER_TENSOR = _INTEGER | {"Softmax"}

TARGET = Target(
    name="ort-cpu",
    runtime="ort",
    package="onnxruntime",
    title="ONNX Runtime",
    operators=Operators(
        weighted=operators("Conv Gemm MatMul"),
        integer=_INTEGER,
        absorbs=operators("Relu Clip"),
        between=operators(
            "Relu Clip HardSigmoid HardSwish Tanh Elu PRelu Celu Selu Mish Gelu Softplus Softsign ThresholdedRelu Softmax"
        ),
        passes=operators("MaxPool Reshape Transpose Squeeze Unsqueeze Slice"),
        repeats=operators(
            "Flatten Gather GatherElements Split Resize Expand Tile Pad ReduceMax ReduceMin DepthToSpace"
        ),
        decomposed=operators("Swish"),
    ),
    placement=Placement(
        reads={
            **dict.fromkeys(("Conv", "Gemm", "MatMul", "Add", "Mul"), (0, 1)),
            **dict.fromkeys(
                ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "MaxPool", "Resize"), (0,)
            ),
            **dict.fromkeys(("ReduceMax", "ReduceMin", "Expand", "Tile"), (0,)),
            "Where": (1, 2),
            "Concat": None,
        },
        writes=_INTEGER | {"Conv"},
    ),
    weights=Weights(products=frozenset({("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")}), shorter_blocks=True),
    limits=Limits(contrib=True),
)
