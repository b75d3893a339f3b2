"""What each runtime turns into integer kernels: one table per target, read by the patterns and the placement.

Sources: ONNX Runtime's Q/DQ selectors and transformers (CPU), NNCF's placement for OpenVINO; both checked against the
runtimes' own optimized graphs by the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxqat.errors import InputError


@dataclass(frozen=True)
class Target:
    """What a runtime can do with quantized nodes.

    Attributes:
        name: as the user writes it.
        weighted: operators with a weight that become one integer kernel.
        integer: other operators that read integers; used only where all they read is integer already. OpenVINO's elementwise ones
            (Add to Sqrt) compute in float, in one generated kernel with the quantizers around them.
        passes: data movement across which the runtime carries a quantizer itself.
        repeats: data movement that runs on integers, if at all, only with a second pair, of the same scale, behind it.
        absorbs: activations that vanish in the requantization of the node before them.
        between: activations without an integer kernel that are worth running in float between two pairs.
        decomposed: functions of several nodes whose parts may be quantized one by one; others stay in float as wholes.
        quantized_outputs: operators whose integer kernel must write integers; others may write float.
        accumulates: weighted operators that add a value of the output's shape to their accumulator, in float, before they
            requantize: what only an Add reads of them needs no quantizer, and would lose its rounding in the runtime.
        joins: operators whose inputs share one scale, so that a quantizer passes through them to each input.
        symmetric_activations: whether activations have a fixed zero point.
        signed_activations: whether symmetric activations with negative values are int8; uint8 with the zero point in the middle
            otherwise.
        narrow_weights: leave out the lowest code of symmetric weights below 8 bits; at 8 it is always left out, since ARM
            processors without dot product wrap where two products -128 · -128 meet.
        softmax_product: whether the product of attention probabilities and values may be quantized.
        integer_bias: whether biases are deployed as int32 of scale sx·sw rather than float.
    """

    name: str
    weighted: frozenset[str]
    integer: frozenset[str]
    passes: frozenset[str]
    repeats: frozenset[str]
    absorbs: frozenset[str]
    between: frozenset[str]
    decomposed: frozenset[str]
    quantized_outputs: frozenset[str]
    accumulates: frozenset[str]
    joins: frozenset[str]
    symmetric_activations: bool
    signed_activations: bool
    narrow_weights: bool
    softmax_product: bool
    integer_bias: bool

    @property
    def moves(self) -> frozenset[str]:
        """Data movement of both kinds."""
        return self.passes | self.repeats


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


_ORT_INTEGER = _operators("Add Mul Concat AveragePool GlobalAveragePool LeakyRelu Sigmoid")
#: Around these a value has one scale, whatever the granularity: ONNX Runtime refuses to load a model where it has several.
PER_TENSOR = _ORT_INTEGER | {"Softmax"}

ORT_CPU = Target(
    name="ort-cpu",
    weighted=_operators("Conv Gemm MatMul"),
    integer=_ORT_INTEGER,
    passes=_operators("MaxPool Reshape Transpose Squeeze Unsqueeze Slice"),
    repeats=_operators("Flatten Gather GatherElements Split Resize Expand Tile Pad ReduceMax ReduceMin DepthToSpace"),
    absorbs=_operators("Relu Clip"),
    between=_operators(
        "Relu Clip HardSigmoid HardSwish Tanh Elu PRelu Celu Selu Mish Gelu Softplus Softsign ThresholdedRelu Softmax"
    ),
    decomposed=_operators("Swish"),
    quantized_outputs=_ORT_INTEGER | {"Conv"},
    accumulates=frozenset(),
    joins=frozenset(),
    symmetric_activations=False,
    signed_activations=False,
    narrow_weights=False,
    softmax_product=True,
    integer_bias=True,
)

OPENVINO = Target(
    name="openvino",
    weighted=_operators("Conv ConvTranspose Gemm MatMul"),
    integer=_operators("Add Sub Mul Div Min Max Pow Sqrt AveragePool GlobalAveragePool ReduceMean ReduceSum"),
    passes=_operators(
        "MaxPool GlobalMaxPool ReduceMax ReduceMin Reshape Transpose Squeeze Unsqueeze Split Slice Gather Flatten DepthToSpace "
        "Expand"
    ),
    # without a pair behind a Pad, what follows runs in float (OpenVINO 2026.4)
    repeats=_operators("Resize Tile Pad"),
    absorbs=_operators("Relu Clip LeakyRelu PRelu Elu Sigmoid Tanh HardSigmoid HardSwish Gelu Mish"),
    between=_operators("HardSwish Gelu Swish"),
    decomposed=frozenset(),
    quantized_outputs=frozenset(),
    accumulates=_operators("Conv"),
    joins=_operators("Concat"),
    symmetric_activations=True,
    signed_activations=True,
    narrow_weights=True,
    softmax_product=False,
    integer_bias=False,
)

TARGETS = {target.name: target for target in (ORT_CPU, OPENVINO)}


def target(name: str) -> Target:
    """The table of a target.

    Raises:
        InputError: there is no table for it yet.
    """
    if name not in TARGETS:
        raise InputError(f"target {name!r}: not supported yet; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
