"""The networks in PyTorch, made from the ONNX files: one module for each layer, joined by torch.fx. Needs torch and onnx alone.

Images are [N, 1, 28, 28] for both: with one channel, the Reshape that begins a network with channels last is left out. So is the
Softmax at an end: losses read logits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def network(path: Path) -> fx.GraphModule:
    """The network in float, in evaluation mode; constant factors and terms behind a layer are in its weights and bias."""
    graph = onnx.load(path).graph
    builder = _Builder({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer})
    builder.values[graph.input[0].name] = builder.graph.placeholder("image")
    for node in graph.node:
        builder.add(node)
    builder.graph.output(builder.values[graph.output[0].name])
    return fx.GraphModule(builder.modules, builder.graph).eval()


def layers(net: fx.GraphModule) -> list[str]:
    """Names of the layers with weights, in order of execution."""
    named = dict(net.named_modules())
    called = [str(node.target) for node in net.graph.nodes if node.op == "call_module"]
    return [name for name in called if isinstance(named[name], nn.Conv2d | nn.Linear)]


def folded(net: fx.GraphModule) -> fx.GraphModule:
    """The network with its normalizations folded into the convolutions before them."""
    for name, norm in _normalizations(net).items():
        net.set_submodule(name, fuse_conv_bn_eval(net.get_submodule(name), net.get_submodule(norm)))
        net.set_submodule(norm, nn.Identity())
    return net


def normalized(net: fx.GraphModule, images: torch.Tensor) -> fx.GraphModule:
    """The same function with a normalization behind every convolution; statistics that a file has folded are measured anew."""
    convolutions = [name for name in layers(net) if isinstance(net.get_submodule(name), nn.Conv2d)]
    bare = [name for name in convolutions if name not in _normalizations(net)]
    found = observed(net, bare, images, outputs=True)
    for name in bare:
        conv = net.get_submodule(name)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        norm = nn.BatchNorm2d(conv.out_channels).eval()
        variance, mean = torch.var_mean(found[name], (0, 2, 3), correction=0)
        norm.running_var.copy_(variance)
        norm.running_mean.copy_(mean - bias)
        norm.weight.data.copy_((variance + norm.eps).sqrt())
        norm.bias.data.copy_(mean)
        conv.bias = None
        net.set_submodule(name, nn.Sequential(conv, norm))
    return net


def estimate_statistics(net: nn.Module, images: torch.Tensor) -> None:
    """Gives normalizations the statistics of the quantized network."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean of all batches
    net.train()
    with torch.no_grad():
        for part in images.split(128):
            net(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def observed(
    net: fx.GraphModule, names: list[str], images: torch.Tensor, *, outputs: bool = False
) -> dict[str, torch.Tensor]:
    """What modules read, or give, on these images."""
    found: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: found.update({name: (output if outputs else inputs[0]).detach()})

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return found


def _normalizations(net: fx.GraphModule) -> dict[str, str]:
    """The normalization that follows a convolution, by its name."""
    named = dict(net.named_modules())
    return {
        str(node.args[0].target): str(node.target)
        for node in net.graph.nodes
        if node.op == "call_module" and isinstance(named[str(node.target)], nn.BatchNorm2d)
    }


class _Builder:
    """The graph so far."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.graph, self.modules = fx.Graph(), nn.Module()
        self.values: dict[str, fx.Node] = {}
        self._arrays = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def add(self, node: onnx.NodeProto) -> None:
        """Adds what a node does."""
        data = [name for name in node.input if name in self.values]
        constants = [self._arrays[name] for name in node.input if name in self._arrays]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if len(data) == 2:
            result = self.graph.call_function(operator.add, tuple(self.values[name] for name in data))
        elif node.op_type in ("Mul", "Add"):
            result = self.values[data[0]]
            _change(self.modules.get_submodule(str(result.target)), node.op_type, constants[0].flatten())
        else:
            result = self.values[data[0]]
            for module in _MODULES[node.op_type](constants, attributes):
                name = f"layer{len(list(self.modules.children()))}"
                self.modules.add_module(name, module)
                result = self.graph.call_module(name, (result,))
        self.values[node.output[0]] = result


def _change(layer: nn.Conv2d | nn.Linear, operation: str, constant: torch.Tensor) -> None:
    """Multiplies a layer's outputs by a constant, or adds it to them."""
    with torch.no_grad():
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        if operation == "Mul":
            layer.weight *= constant.reshape(-1, *[1] * (layer.weight.ndim - 1))
            bias = bias * constant
        else:
            bias = bias + constant
        layer.bias = nn.Parameter(bias)


def _conv(constants: list[torch.Tensor], attributes: dict[str, Any]) -> list[nn.Module]:
    weight, *bias = constants
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    even = (top, left) == (bottom, right)
    groups, strides = attributes["group"], tuple(attributes["strides"])
    kernel, padding = tuple(weight.shape[2:]), (top, left) if even else 0
    conv = nn.Conv2d(weight.shape[1] * groups, len(weight), kernel, strides, padding, groups=groups, bias=bool(bias))
    return [*([] if even else [nn.ZeroPad2d((left, right, top, bottom))]), _filled(conv, weight, bias)]


def _linear(weight: torch.Tensor, bias: list[torch.Tensor]) -> list[nn.Module]:
    return [_filled(nn.Linear(weight.shape[1], len(weight), bias=bool(bias)), weight, bias)]


def _filled(layer: Any, weight: torch.Tensor, bias: list[torch.Tensor]) -> nn.Module:
    layer.weight = nn.Parameter(weight.contiguous())
    if bias:
        layer.bias = nn.Parameter(bias[0])
    return layer


def _norm(constants: list[torch.Tensor], attributes: dict[str, Any]) -> list[nn.Module]:
    norm = nn.BatchNorm2d(len(constants[0]), attributes["epsilon"])
    norm.load_state_dict(
        dict(zip(("weight", "bias", "running_mean", "running_var"), constants, strict=True)), strict=False
    )
    return [norm]


#: The modules that a node of one data input becomes.
_MODULES: dict[str, Callable[[list[torch.Tensor], dict[str, Any]], list[nn.Module]]] = {
    "BatchNormalization": _norm,
    "Clip": lambda *_: [nn.ReLU6()],
    "Conv": _conv,
    "Flatten": lambda *_: [nn.Flatten()],
    "Gemm": lambda constants, _: _linear(constants[0], constants[1:]),
    "GlobalAveragePool": lambda *_: [nn.AdaptiveAvgPool2d(1)],
    "MatMul": lambda constants, _: _linear(constants[0].T, []),
    "Relu": lambda *_: [nn.ReLU()],
    "Reshape": lambda *_: [],
    "Softmax": lambda *_: [],
    "Squeeze": lambda *_: [nn.Flatten()],
}
