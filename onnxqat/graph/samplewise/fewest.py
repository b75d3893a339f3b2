"""Samples that a part of a batch should have at least, so that it takes less time than the batch does."""

from __future__ import annotations

import onnx_ir as ir

#: Each step of a recurrent operator multiplies by all of its weights, and takes about as long for any fewer rows than these.
OF_RECURRENT = 16
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def fewest(model: ir.Model) -> int:
    """Samples of a part from which on cutting pays: 1, but for recurrent networks without convolutions, which gain most."""
    kinds = {node.op_type for node in model.graph.all_nodes()}
    return OF_RECURRENT if kinds & _RECURRENT and not any("Conv" in kind for kind in kinds) else 1
