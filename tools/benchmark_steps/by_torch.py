"""PyTorch's float32 step, of networks with convolutions; of others, with their weights fake-quantized at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

from tools.benchmark_steps import torch_networks

LOSSES = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}


def step(folder: Path, loss: str, threads: int, *, channels_last: bool = False) -> Callable[[], object]:
    """Forward, backward and update."""
    torch.set_num_threads(threads)
    data, labels = batch(folder, channels_last=channels_last)
    network = module(folder, channels_last=channels_last)
    return stepping(network, torch.optim.AdamW(network.parameters(), lr=1e-5), loss, data, labels)


def stepping(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: str, data: torch.Tensor, labels: torch.Tensor
) -> Callable[[], object]:
    """A step of this module by this optimizer."""

    def step() -> None:
        optimizer.zero_grad()
        LOSSES[loss](module(data), labels).backward()
        optimizer.step()

    return step


def batch(folder: Path, *, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Data and labels."""
    with np.load(folder / "batch.npz") as arrays:
        data, labels = (torch.from_numpy(arrays[name]) for name in arrays.files)
    return data.contiguous(memory_format=_layout(channels_last)), labels


def module(folder: Path, *, channels_last: bool = False) -> torch.nn.Module:
    """The network in PyTorch."""
    graph = onnx.load(folder / "float.onnx").graph
    kinds = {node.op_type for node in graph.node}
    if "LSTM" in kinds:
        return torch_networks.Recurrent()
    if "LayerNormalization" in kinds:
        return torch_networks.Encoder(384, 6, 6)
    return _Images(graph).to(memory_format=_layout(channels_last))


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


class _Images(torch.nn.Module):
    """The nodes of an ONNX graph, one after the other; weights are parameters."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__()
        self.data, self.result = graph.input[0].name, graph.output[0].name
        self.steps = [_step(node) for node in graph.node]
        self.numbers: dict[str, torch.Tensor] = {}
        for tensor in graph.initializer:
            array = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if array.ndim and array.is_floating_point():
                self.register_parameter(_name(tensor.name), torch.nn.Parameter(array))
            else:
                self.numbers[_name(tensor.name)] = array

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Runs the nodes."""
        values = {**self.numbers, **dict(self.named_parameters()), _name(self.data): images}
        for function, inputs, output in self.steps:
            values[output] = function(*(values.get(name) for name in inputs))
        return values[_name(self.result)]


def _step(node: onnx.NodeProto) -> tuple[Callable[..., torch.Tensor], list[str], str]:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    operator = _OPERATORS[node.op_type]
    return lambda *inputs: operator(*inputs, **attributes), [*map(_name, node.input)], _name(node.output[0])


def _name(name: str) -> str:
    return name.replace(".", "_")


def _conv(x, w, b=None, *, strides=(1, 1), pads=(0, 0, 0, 0), group=1, **_):  # noqa: ANN001, ANN003, ANN202
    return functional.conv2d(x, w, b, stride=tuple(strides), padding=tuple(pads[:2]), groups=group)


def _pool(x, *, kernel_shape, strides, pads=(0, 0, 0, 0), **_):  # noqa: ANN001, ANN003, ANN202
    return functional.max_pool2d(x, tuple(kernel_shape), tuple(strides), tuple(pads[:2]))


def _mean(x: torch.Tensor, *, axes: Iterable[int] = (2, 3), keepdims: int = 1, **_: object) -> torch.Tensor:
    return x.mean(tuple(axes), keepdim=bool(keepdims))


def _reshape(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape.tolist())])


#: The operators of these networks.
_OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "Clip": lambda x, low, high: x.clamp(float(low), float(high)),
    "Conv": _conv,
    "Flatten": lambda x, **_: x.flatten(1),
    "Gemm": lambda x, w, b, **attributes: functional.linear(x, w if attributes.get("transB") else w.T, b),
    "GlobalAveragePool": _mean,
    "Identity": lambda x: x,
    "MaxPool": _pool,
    "ReduceMean": _mean,
    "Relu": torch.relu,
    "Reshape": _reshape,
}
