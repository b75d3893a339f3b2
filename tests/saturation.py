"""Whether a processor without VNNI would compute something else than the model says."""

from __future__ import annotations

import onnx

from onnxqat.graph import io
from onnxqat.graph.pairs import paired_layers
from onnxqat.graph.qdq import quantizers
from onnxqat.numerics import saturates


def saturating(proto: onnx.ModelProto) -> dict[str, int]:
    """Counts the pairs of weight codes that can saturate, over the pairings of both runtimes, by layer."""
    return {
        str(layer.node.name): sum(
            int(saturates(*layer.members(layer.weight.codes, pairing), layer.largest).sum())
            for pairing in {pairing for runtime in layer.runtimes for pairing in layer.pairings(runtime)}
        )
        for layer in paired_layers(io.load(proto))
    }


def lowest_code(proto: onnx.ModelProto) -> int:
    """Lowest code of all weights of up to 8 bits."""
    return min(int(q.codes.min()) for q in quantizers(io.load(proto)) if q.is_weight and q.bits <= 8)
