"""Structure of a Q/DQ model as a target's runtime sees it: where a value's integers come from."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxqat.graph.movement import moved
from onnxqat.graph.qdq import Quantizer
from onnxqat.targets import Target

Quantizers = Mapping[ir.Value, Quantizer]


def sources(value: ir.Value, quantized: Quantizers, target: Target) -> list[ir.Value]:
    """The values that the data of `value` comes from: outputs of quantizers, or of what the runtime moves none across."""
    producer = value.producer()
    if value in quantized or producer is None:
        return [value]
    if producer.op_type in target.operators.joins:
        data = [source for source in producer.inputs if source is not None]
        return list(dict.fromkeys(above for source in data for above in sources(source, quantized, target)))
    above = moved(producer, target.operators.moves | {"Identity"})
    return [value] if above is None else sources(above, quantized, target)


def is_integer(value: ir.Value | None, quantized: Quantizers, target: Target) -> bool:
    """Whether all that a value comes from is integers."""
    return value is not None and all(above in quantized for above in sources(value, quantized, target))
