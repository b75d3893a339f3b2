"""OpenVINO on CPUs.

Source: NNCF's placement; checked against the layers that OpenVINO executes, of 2026.4, by the tests.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.targets.facts import Target, operators


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
    weighted=operators("Conv ConvTranspose Gemm MatMul"),
    integer=operators("Add Sub Mul Div Min Max Pow Sqrt AveragePool GlobalAveragePool ReduceMean ReduceSum"),
    passes=operators(
        "MaxPool GlobalMaxPool ReduceMax ReduceMin Reshape Transpose Squeeze Unsqueeze Split Slice Gather Flatten DepthToSpace "
        "Expand"
    ),
    # without a pair behind a Pad, what follows runs in float (OpenVINO 2026.4)
    repeats=operators("Resize Tile Pad"),
    absorbs=operators("Relu Clip LeakyRelu PRelu Elu Sigmoid Tanh HardSigmoid HardSwish Gelu Mish"),
    between=operators("HardSwish Gelu Swish"),
    decomposed=frozenset(),
    quantized_outputs=frozenset(),
    accumulates=operators("Conv MatMul Gemm"),
    joins=operators("Concat"),
    symmetric_activations=True,
    signed_activations=True,
    shorter_blocks=False,
    narrow_weights=True,
    softmax_product=False,
    integer_bias=False,
    reads={},
    pairs_products=True,
    unknown_without_vnni=_follows_no_rule,
    # On x86 without AMX codes of int8 become uint8. Where a Concat is anywhere in the model, even of sizes, quantizers are
    # aligned across data movement, and layers behind it lose the zero point of these codes: their outputs are wrong by a fifth
    # and more, or the model does not load (2026.4). Codes of uint8 around 128 are right everywhere.
    unsigned_beside=operators("Concat"),
    reads_signed=operators("ConvTranspose"),
    loses_biases=operators("Conv"),
    # it leaves out quantizers of 16 bits, and computes in float (2026.4)
    activation_bits=frozenset(range(2, 9)),
    simulates=frozenset(),
)
