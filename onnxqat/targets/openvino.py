"""OpenVINO on CPUs.

Source: NNCF's placement; checked against the layers that OpenVINO executes, of 2026.4, by the tests.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.targets.facts import X86, Activations, Biases, Operators, Placement, Target, Weights, Widths, operators


def _follows_no_rule(node: ir.Node, rank: int) -> bool:
    """Whether its kernels for x86 without VNNI follow no rule that is known: transposed and grouped 3-D convolutions.

    It computes the former in float on some of these processors and in integers of its own on others, and the latter, depthwise
    ones too, in a way that is neither exact nor explained by pairs that saturate (2026.4).
    """
    if node.op_type == "ConvTranspose":
        return True
    return node.op_type == "Conv" and rank == 5 and node.attributes.get_int("group", 1) > 1


TARGET = Target(
    name="openvino",
    runtime="openvino",
    package="openvino",
    title="OpenVINO",
    operators=Operators(
        weighted=operators("Conv ConvTranspose Gemm MatMul"),
        integer=operators("Add Sub Mul Div Min Max Pow Sqrt AveragePool GlobalAveragePool ReduceMean ReduceSum"),
        absorbs=operators("Relu Clip LeakyRelu PRelu Elu Sigmoid Tanh HardSigmoid HardSwish Gelu Mish"),
        between=operators("HardSwish Gelu Swish"),
        passes=operators(
            "MaxPool GlobalMaxPool ReduceMax ReduceMin Reshape Transpose Squeeze Unsqueeze Split Slice Gather Flatten "
            "DepthToSpace Expand"
        ),
        # without a pair behind a Pad, what follows runs in float (OpenVINO 2026.4)
        repeats=operators("Resize Tile Pad"),
        joins=operators("Concat"),
    ),
    placement=Placement(accumulates=operators("Conv MatMul Gemm"), softmax_product=False),
    activations=Activations(
        symmetric=True,
        signed=True,
        # On x86 without AMX codes of int8 become uint8. Where a Concat is anywhere in the model, even of sizes, quantizers are
        # aligned across data movement, and layers behind it lose the zero point of these codes: their outputs are wrong by a
        # fifth and more, or the model does not load (2026.4). Codes of uint8 around 128 are right everywhere.
        unsigned_beside=operators("Concat"),
        signed_for=operators("ConvTranspose"),
    ),
    # it leaves out quantizers of 16 bits, and computes in float (2026.4)
    widths=Widths(taken=frozenset(range(2, 9)), simulated=frozenset()),
    weights=Weights(narrow=True),
    biases=Biases(integer=False, lost_by=operators("Conv")),
    x86=X86(pairs_products=True, unknown=_follows_no_rule),
)
