"""Layers of extreme weights in which pairs saturate, and in NumPy what kernels make of them without VNNI."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tests.models import model

QUANTIZED = "q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) w = DequantizeLinear<axis={axis}>(c, sw, zw)"
WRITTEN = "p = QuantizeLinear(r, sy, zy) y = DequantizeLinear(p, sy, zy)"
STEP, WEIGHT_STEP = np.float32(0.05), 0.01


@dataclass(frozen=True)
class Layer:
    """One layer between quantizers.

    Attributes:
        op: its operator.
        data: shape of its data.
        weight: shape of its weight.
        zero: zero point of the data: uint8, or int8 where `signed`.
        attributes: of the node, as text.
        writes: whether its output is quantized.
        per_channel: whether each output channel has a scale.
    """

    op: str
    data: tuple[int, ...]
    weight: tuple[int, ...]
    zero: int = 77
    attributes: dict[str, Any] = field(default_factory=dict)
    signed: bool = False
    writes: bool = True
    per_channel: bool = True

    @property
    def channel_axis(self) -> int:
        """Of the weight."""
        if self.op == "ConvTranspose":
            return 1
        return 0 if self.op == "Conv" or self.attributes.get("transB") else len(self.weight) - 1

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The initializers."""
        rng = np.random.default_rng([len(self.op), *self.data, *self.weight])
        channels = self.weight[self.channel_axis] if self.per_channel else ()
        scales = np.asarray(rng.uniform(0.5, 1.5, channels) * WEIGHT_STEP, np.float32)
        inputs = np.prod(self.weight) / self.weight[self.channel_axis]
        arrays = {
            "sx": STEP,
            "zx": np.asarray(self.zero, np.int8 if self.signed else np.uint8),
            "c": rng.integers(-127, 128, self.weight).astype(np.int8),
            "sw": scales,
            "zw": np.zeros(scales.shape, np.int8),
        }
        if self.writes:
            arrays |= {"sy": np.float32(STEP * WEIGHT_STEP * 90 * np.sqrt(inputs)), "zy": np.uint8(128)}
        if self.op in ("Conv", "Gemm"):
            codes = rng.integers(-3000, 3000, self.weight[self.channel_axis]).astype(np.int32)
            arrays |= {"b": codes, "sb": STEP * scales, "zb": np.zeros(scales.shape, np.int32)}
        return arrays

    def model(self) -> onnx.ModelProto:
        """The deployed model."""
        biased = self.op in ("Conv", "Gemm")
        listed = ", ".join(f"{name}={value}" for name, value in self.attributes.items())
        attributes = f"<{listed}>" if listed else ""
        node = f"[layer] {'r' if self.writes else 'y'} = {self.op}{attributes}(d, w{', v' if biased else ''})"
        bias = "v = DequantizeLinear<axis=0>(b, sb, zb)" if biased else ""
        ending = WRITTEN if self.writes else ""
        dims = ",".join(["N", *map(str, self.data[1:])])
        free = ",".join(f"E{axis}" for axis in range(len(self.data)))
        body = f"{QUANTIZED.format(axis=self.channel_axis)} {bias} {node} {ending}"
        return model(f"(float[{dims}] x) => (float[{free}] y) {{ {body} }}", **self.weights)

    def inputs(self) -> dict[str, np.ndarray]:
        """Data of random codes."""
        codes = np.random.default_rng(1).integers(0, 256, self.data)
        return {"x": ((codes - self.raw_zero) * STEP).astype(np.float32)}

    @property
    def raw_zero(self) -> int:
        """The code of 0 as kernels see it: unsigned."""
        return self.zero + (128 if self.signed else 0)


def expected(layer: Layer, pairing: str | None) -> np.ndarray:
    """Computes a kernel whose pairs ("taps" or "channels") saturate; exact for None: codes, or floats."""
    w = layer.weights
    raw = np.random.default_rng(1).integers(0, 256, layer.data)
    if layer.op == "Conv":
        total = _convolved(layer, raw, w["c"].astype(np.int64), pairing)
    else:
        matrix = (np.swapaxes(w["c"], -1, -2) if layer.attributes.get("transB") else w["c"]).astype(np.int64)
        share = layer.raw_zero * matrix.sum(-2, keepdims=matrix.ndim > 2)
        total = _pairs_added(raw, matrix, pairing) - share
    trailing = [1] * (len(layer.weight) - 2) if layer.op == "Conv" else []

    def along(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *trailing) if array.ndim else array

    total = total + (along(w["b"]) if "b" in w else 0)
    scale = along(w["sx"] * w["sw"])
    if not layer.writes:
        return np.asarray(total.astype(np.float32) * scale)
    return np.clip(np.rint(total.astype(np.float32) * (scale / w["sy"])) + 128, 0, 255)


def _pairs_added(data: np.ndarray, matrix: np.ndarray, pairing: str | None) -> np.ndarray:
    """[..., K] times [..., K, N], neighbours of K added in 16 bits."""
    if pairing is None:
        return data @ matrix
    if data.shape[-1] % 2:
        data = np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, 1)])
        matrix = np.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, 1), (0, 0)])
    products = data[..., :, None] * matrix[..., None, :, :]
    sums = products[..., 0::2, :] + products[..., 1::2, :]
    return np.asarray(np.clip(sums, -(2**15), 2**15 - 1).sum(axis=-2))


def _convolved(layer: Layer, raw: np.ndarray, codes: np.ndarray, pairing: str | None) -> np.ndarray:
    """Sums of a convolution less their zero point's share: [N, O, ...]."""
    groups = layer.attributes.get("group", 1)
    inputs, outputs = codes.shape[1], len(codes) // groups
    found = []
    for group in range(groups):
        columns = _columns(layer, raw[:, group * inputs : (group + 1) * inputs])  # [N, ..., taps, channels]
        kernels = codes[group * outputs : (group + 1) * outputs].reshape(outputs, inputs, -1).swapaxes(1, 2)
        if pairing == "channels" and inputs % 2:
            columns = np.pad(columns, [(0, 0)] * (columns.ndim - 1) + [(0, 1)])
            kernels = np.pad(kernels, [(0, 0), (0, 0), (0, 1)])
        rows = columns.reshape(*columns.shape[:-2], -1)
        found.append(_pairs_added(rows, kernels.reshape(outputs, -1).T, pairing))
    total = np.moveaxis(np.concatenate(found, axis=-1), -1, 1)
    share = layer.raw_zero * codes.reshape(len(codes), -1).sum(axis=1)
    return np.asarray(total - share.reshape(-1, *[1] * (codes.ndim - 2)))


def _columns(layer: Layer, raw: np.ndarray) -> np.ndarray:
    """Returns what each output reads, padding as the code of 0: [N, ..., taps, channels]."""
    kernel = layer.weight[2:]
    rank = len(kernel)
    pads = layer.attributes.get("pads", [0] * 2 * rank)
    strides = layer.attributes.get("strides", [1] * rank)
    dilations = layer.attributes.get("dilations", [1] * rank)
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(raw, around, constant_values=layer.raw_zero)
    sizes = [(padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    taps = []
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        cut = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(starts, strides, sizes, strict=True)]
        taps.append(np.moveaxis(padded[(slice(None), slice(None), *cut)], 1, -1))
    return np.stack(taps, axis=-2)


def _conv(data: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Layer:
    extra = {name: attributes.pop(name) for name in ("zero", "signed", "per_channel") if name in attributes}
    return Layer("Conv", data, weight, attributes={"kernel_shape": list(weight[2:]), **attributes}, **extra)


LAYERS = {
    "1-D": _conv((2, 5, 19), (8, 5, 3), pads=[1, 1]),
    "2-D": _conv((2, 8, 9, 9), (8, 8, 3, 3), pads=[1, 1, 1, 1]),
    "odd channels, uneven pads": _conv((2, 3, 9, 9), (8, 3, 2, 3), pads=[0, 1, 1, 0]),
    "strides": _conv((2, 5, 9, 9), (16, 5, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], zero=128),
    "dilations": _conv((2, 5, 11, 11), (16, 5, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
    "3-D": _conv((2, 3, 5, 6, 7), (8, 3, 3, 3, 3), pads=[1] * 6),
    "groups": _conv((2, 8, 9, 9), (8, 4, 3, 3), pads=[1, 1, 1, 1], group=2),
    "groups of odd channels": _conv((2, 15, 9, 9), (9, 5, 3, 3), pads=[1, 1, 1, 1], group=3),
    "one channel per group, two out": _conv((2, 4, 9, 9), (8, 1, 3, 3), pads=[1, 1, 1, 1], group=4),
    "1 x 1": _conv((2, 7, 9, 9), (8, 7, 1, 1)),
    "one scale": _conv((2, 4, 9, 9), (8, 4, 3, 3), per_channel=False),
    "int8 data": _conv((2, 3, 9, 9), (8, 3, 3, 3), pads=[1, 1, 1, 1], signed=True, zero=-28),
    "gemm": Layer("Gemm", (5, 33), (33, 11)),
    "gemm, transposed": Layer("Gemm", (5, 64), (11, 64), attributes={"transB": 1}),
    "gemm, float": Layer("Gemm", (5, 33), (33, 11), writes=False),
    "matmul": Layer("MatMul", (3, 5, 33), (33, 11)),
    "matmul, float": Layer("MatMul", (3, 5, 300), (300, 11), writes=False),
    "matrices": Layer("MatMul", (3, 5, 9), (3, 9, 11), per_channel=False),
    "int8 matmul": Layer("MatMul", (3, 5, 8), (8, 11), signed=True, zero=0),
}


def openvino_pairing(layer: Layer) -> str:
    """Returns how OpenVINO pairs on AVX2."""
    odd_groups = layer.attributes.get("group", 1) > 1 and layer.weight[1] % 2 == 1
    return "taps" if layer.op == "Conv" and odd_groups else "channels"
