"""WebGPU, through ONNX Runtime on the web: it dequantizes weights, and has no kernel that quantizes activations.

Source: the provider's kernels, DequantizeLinear of int8 and uint8, MatMulNBits and GatherBlockQuantized among them, and no
QuantizeLinear, at which a model falls back to the CPU.
"""

from __future__ import annotations

from dataclasses import replace

from onnxqat.targets.facts import operators
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU

TARGET = replace(
    ORT_CPU,
    name="webgpu",
    title="WebGPU",
    weighted=operators("Conv ConvTranspose Gemm MatMul"),
    integer=frozenset(),
    quantized_outputs=frozenset(),
    adds_pairs=False,
    weight_only=True,
)
