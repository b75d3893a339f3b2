"""WebGPU, through ONNX Runtime on the web: it dequantizes weights, and has no kernel that quantizes activations.

Source: the provider's kernels, DequantizeLinear of int8 and uint8, MatMulNBits and GatherBlockQuantized among them, and no
QuantizeLinear, at which a model falls back to the CPU.
"""

from __future__ import annotations

from dataclasses import replace

from onnxqat.targets.facts import X86, operators
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU

TARGET = replace(
    ORT_CPU,
    name="webgpu",
    title="WebGPU",
    operators=replace(ORT_CPU.operators, weighted=operators("Conv ConvTranspose Gemm MatMul"), integer=frozenset()),
    placement=replace(ORT_CPU.placement, writes=frozenset()),
    weights=replace(ORT_CPU.weights, only=True),
    x86=X86(adds_pairs=False),
)
