"""Presets of training by the width of weights: the narrower their codes, the further weights must move to change one."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.qdq import quantizers
from onnxqat.graph.without import ADAPTED, RECONSTRUCTION

#: AdamW's largest rate for weights of so many bits or more; chosen on validation images, see `docs/benchmarks.md`.
_RATES = {7: 1e-5, 5: 3e-4, 2: 1e-3}
#: The most for a model whose blocks were reconstructed: it is so close to the float one that larger steps lead away.
_RECONSTRUCTED = 1e-4


def rate_of(qdq: ir.Model) -> float:
    """Learning rate with which to begin, by the narrowest quantizer of a weight, or of a value where no weight has one."""
    found = quantizers(qdq)
    bits = min((one.bits for one in [one for one in found if one.is_weight] or found), default=8)
    rate = next(rate for width, rate in _RATES.items() if bits >= width)
    return min(rate, _RECONSTRUCTED) if qdq.metadata_props.get(ADAPTED) == RECONSTRUCTION else rate
