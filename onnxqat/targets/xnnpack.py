"""XNNPACK on phones, through ONNX Runtime's execution provider: convolutions of signed integers; the CPU computes the rest.

Source: the provider's node units, which take int8 data with int8 weights, or uint8 with uint8, and no product of matrices. The
CPU's own integer kernels take what is left to it in the same codes.
"""

from __future__ import annotations

from dataclasses import replace

from onnxqat.targets.facts import Activations, Widths, operators
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU

_WEIGHTED = operators("Conv ConvTranspose")

TARGET = replace(
    ORT_CPU,
    name="xnnpack",
    title="XNNPACK",
    operators=replace(ORT_CPU.operators, weighted=_WEIGHTED),
    placement=replace(ORT_CPU.placement, writes=ORT_CPU.placement.writes | _WEIGHTED),
    activations=Activations(unsigned=False),
    widths=Widths(taken=frozenset({8})),
    weights=replace(
        ORT_CPU.weights,
        products=frozenset({("int8", "int8"), ("uint8", "uint8")}),
        per_tensor=operators("ConvTranspose"),
        one_scale=operators("ConvTranspose"),
        block_sizes=frozenset(),
    ),
    limits=replace(ORT_CPU.limits, clips_codes=False),
)
