"""Brevitas: its own layers, with learned scales that begin at the least squared error. Runs in the peers' environment.

Settings: `keep`, whether normalizations stay in training; without it they are folded, as its own graph passes do.
"""

from __future__ import annotations

import torch
from brevitas import nn as quantized_nn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8ActPerTensorFloatMSE,
    Int8WeightPerChannelFloatMSE,
    Uint8ActPerTensorFloatMSE,
)
from torch import fx, nn

from tools.benchmark_few_bits import torch_run
from tools.benchmark_few_bits.task import Judged, Task
from tools.benchmark_few_bits.torch_net import estimate_statistics, folded, layers, normalized, observed


def run(task: Task) -> dict[str, Judged]:
    """See `torch_run.run`."""
    keep = bool(task.settings.get("keep"))

    def quantized(net: fx.GraphModule, images: torch.Tensor) -> nn.Module:
        net = normalized(net, images) if keep else folded(net)
        _replace_layers(net, images, task.bits)
        with torch.no_grad(), calibration_mode(net):
            for part in images.split(128):
                net(part)
        if keep:
            estimate_statistics(net, images)
        return net

    return torch_run.run(task, quantized, training=True)


def _replace_layers(net: fx.GraphModule, images: torch.Tensor, bits: int) -> None:
    names = layers(net)
    read = observed(net, names, images)
    for name, width in torch_run.widths(names, bits).items():
        signed = bool(read[name].min() < 0)
        settings = {
            "weight_quant": Int8WeightPerChannelFloatMSE,
            "weight_bit_width": width,
            "input_quant": Int8ActPerTensorFloatMSE if signed else Uint8ActPerTensorFloatMSE,
            "input_bit_width": width,
        }
        net.set_submodule(name, _quantized(net.get_submodule(name), settings))


def _quantized(layer: nn.Module, settings: dict[str, object]) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        found = quantized_nn.QuantLinear(layer.in_features, layer.out_features, bias=bias, **settings)
    else:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
        found = quantized_nn.QuantConv2d(*sizes, groups=layer.groups, bias=bias, **settings)
    found.load_state_dict(layer.state_dict(), strict=False)
    return found
