"""Training on a GPU beside the CPU and PyTorch on the same card: `tools/check_gpu.sh`, which makes the environment.

ResNet-18 and a BERT-like encoder (6 layers of 384, sequences of 128) take steps of forward, backward and AdamW: by `Trainer` on
the provider and on the CPU, and by PyTorch on the card, with learnable fake-quantization in the places of the same quantizers.
Before that, gradients on the provider are compared with those on the CPU: of `Trainer`, and of `as_module` on the card's tensors.
From Ampere on, both libraries round the factors of products to TF32, so that gradients may differ by 1e-3; with
`NVIDIA_TF32_OVERRIDE=0` they are those of float32, and all steps are slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional

import onnxqat
from onnxqat.torch import as_module
from tools.networks import bert, resnet18

Step = Callable[[], object]
LOSSES = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}


@dataclass(frozen=True)
class Task:
    """A quantized network and a batch for it.

    Attributes:
        qdq: the model.
        loss: name of the loss.
        data: of the batch.
        label: labels of the batch.
    """

    qdq: onnx.ModelProto
    loss: str
    data: NDArray[np.float32]
    label: NDArray[np.generic]

    @classmethod
    def of(cls, model: onnx.ModelProto, loss: str, shape: tuple[int, ...], rows: int) -> Task:
        """The task for a float model on random data."""
        random = np.random.default_rng(0)
        data = random.standard_normal((rows, *shape), dtype=np.float32)
        classes = random.integers(0, 1000, rows)
        label = classes if loss == "cross_entropy" else random.standard_normal(data.shape, dtype=np.float32)
        return cls(onnxqat.insert(model, [{model.graph.input[0].name: data[:2]}]), loss, data, label)

    def trainer(self, provider: str) -> onnxqat.Trainer:
        """What trains it on a provider."""
        return onnxqat.Trainer(self.qdq, loss=self.loss, optimizer=onnxqat.AdamW(lr=1e-5), provider=provider)

    @property
    def batch(self) -> dict[str, NDArray[np.generic]]:
        """The batch for `Trainer`."""
        return {self.qdq.graph.input[0].name: self.data, "label": self.label}


class FakeQuantized(torch.nn.Module):
    """The nodes of a Q/DQ model one after the other, each pair as PyTorch's learnable fake-quantization."""

    def __init__(self, qdq: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = qdq.graph
        self.fixed: dict[str, torch.Tensor] = {}
        self.trained = torch.nn.ParameterDict()
        for tensor in qdq.graph.initializer:
            array = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if array.is_floating_point() and (array.ndim or tensor.name.endswith("scale")) and tensor.name != "scale":
                self.trained[_key(tensor.name)] = torch.nn.Parameter(array)
            else:
                self.fixed[tensor.name] = array

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        """The model's output."""
        values: dict[str, torch.Tensor] = {**self.fixed, self.graph.input[0].name: data}
        pairs: dict[str, tuple[torch.Tensor, int]] = {}
        for node in self.graph.node:
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            read = [self._value(values, name) for name in node.input]
            if node.op_type == "QuantizeLinear":
                pairs[node.output[0]] = read[0], attributes.get("axis", 1)
                values[node.output[0]] = read[2]
            elif node.op_type == "DequantizeLinear":
                values[node.output[0]] = _fake_quantized(*pairs[node.input[0]], read[1], read[2])
            else:
                values[node.output[0]] = OPERATORS[node.op_type](*read, **attributes)
        return values[self.graph.output[0].name]

    def _value(self, values: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return values[name] if name in values else self.trained[_key(name)]


def _key(name: str) -> str:
    return name.replace(".", "/")


def _fake_quantized(x: torch.Tensor, axis: int, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    bounds = torch.iinfo(zero_point.dtype)
    low, zeros = bounds.min, zero_point.to(x.device, torch.float32)
    if scale.ndim and scale.numel() > 1:
        return torch._fake_quantize_learnable_per_channel_affine(x, scale, zeros, axis, low, bounds.max, 1.0)
    return torch._fake_quantize_learnable_per_tensor_affine(x, scale.reshape(1), zeros.reshape(1), low, bounds.max, 1.0)


def _conv(x, w, b=None, *, strides=(1, 1), pads=(0, 0, 0, 0), group=1, **_):  # noqa: ANN001, ANN003, ANN202
    return functional.conv2d(x, w, b, stride=tuple(strides), padding=tuple(pads[:2]), groups=group)


def _reshaped(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    return x.reshape([size if size else x.shape[axis] for axis, size in enumerate(shape.tolist())])


#: The operators of these networks.
OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "Conv": _conv,
    "Div": torch.div,
    "Erf": torch.erf,
    "Flatten": lambda x, **_: x.flatten(1),
    "Gemm": lambda x, w, b, **attributes: functional.linear(x, w if attributes.get("transB") else w.T, b),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "LayerNormalization": lambda x, w, b, **_: functional.layer_norm(x, w.shape, w, b),
    "MatMul": torch.matmul,
    "MaxPool": lambda x, *, kernel_shape, strides, pads, **_: functional.max_pool2d(
        x, tuple(kernel_shape), tuple(strides), tuple(pads[:2])
    ),
    "Mul": torch.mul,
    "Relu": torch.relu,
    "Reshape": _reshaped,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Transpose": lambda x, perm: x.permute(*perm),
}


def in_torch(task: Task, device: str) -> Step:
    """A step of PyTorch's on a device."""
    module = FakeQuantized(task.qdq).to(device)
    module.fixed = {name: one.to(device) if one.is_floating_point() else one for name, one in module.fixed.items()}
    data, label = (torch.from_numpy(array).to(device) for array in (task.data, task.label))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def step() -> float:
        optimizer.zero_grad()
        loss = LOSSES[task.loss](module(data), label)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the card

    return step


def differences(task: Task, provider: str, device: str) -> tuple[float, float]:
    """Largest relative differences of gradients to those on the CPU: of `Trainer`, and of a module on a device."""
    expected = task.trainer("cpu").gradients(task.batch)[1]
    ours = task.trainer(provider).gradients(task.batch)[1]
    module = as_module(task.qdq, provider=provider).to(device)
    data, label = (torch.from_numpy(array).to(device) for array in (task.data, task.label))
    LOSSES[task.loss](module(data), label).backward()
    theirs = {module._names[name]: parameter.grad.cpu().numpy() for name, parameter in module.named_parameters()}
    return _largest(ours, expected), _largest(theirs, expected)


def _largest(found: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float32]]) -> float:
    norms = {name: float(np.linalg.norm(array)) for name, array in expected.items()}
    return max(
        float(np.linalg.norm(found[name].reshape(expected[name].shape) - expected[name])) / norm
        for name, norm in norms.items()
        if norm
    )


def measured(steps: dict[str, Step], turns: int) -> dict[str, float]:
    """Median seconds of each step, taken in turn; the first two, which allocate and choose algorithms, do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn > 1:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(found)) for name, found in times.items()}


def main() -> None:
    """Prints a few lines for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    device = "cuda" if given.provider == "cuda" else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    print(f"onnxruntime {onnxruntime.__version__} on {given.provider}, torch {torch.__version__}, {card}")
    tasks = {
        "ResNet-18": Task.of(resnet18(), "cross_entropy", (3, 224, 224), given.batch),
        "BERT-like": Task.of(bert(384, 6, 6, 128), "mse", (128, 384), given.batch),
    }
    for name, task in tasks.items():
        ours, module = differences(task, given.provider, device)
        print(
            f"{name}, batch {given.batch}: gradients differ from the CPU's by {ours:.1e}, of as_module by {module:.1e}"
        )
        steps: dict[str, Step] = {
            provider: partial(task.trainer(provider).step, task.batch)
            for provider in dict.fromkeys([given.provider, "cpu"])
        }
        times = measured({**steps, "torch": in_torch(task, device)}, given.turns)
        for other, seconds in times.items():
            ratio = times[given.provider] / seconds
            print(f"  {other}: {seconds * 1e3:.0f} ms a step; {given.provider} takes {ratio:.2f} of it")


if __name__ == "__main__":
    main()
