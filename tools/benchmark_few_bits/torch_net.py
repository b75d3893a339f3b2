"""The networks in PyTorch, made from the ONNX files by onnx2torch. Runs in the peers' environment.

The Softmax at an end is left out: losses read logits.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

#: Pads of a convolution with this `auto_pad` are the same before and behind where its kernel is odd and its stride 1.
SAME = b"SAME_UPPER"


def network(path: Path, sample: torch.Tensor) -> fx.GraphModule:
    """The network in float, in evaluation mode; constant factors and terms behind a layer are in its weights and bias.

    Args:
        path: the ONNX file.
        sample: inputs on which the outputs must be those of ONNX Runtime.
    """
    with tempfile.TemporaryDirectory() as folder:
        simple = Path(folder, "simple.onnx")
        session = _simplified(path, simple)
        net = _convert(_padded(onnx.load(simple))).eval()
    (expected,) = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
    for node in net.graph.nodes:
        if node.op == "call_module":
            _fix(net, node)
    net.recompile()
    with torch.no_grad():
        np.testing.assert_allclose(net(sample), expected, rtol=1e-3, atol=1e-5)
    for name, module in net.named_children():
        if isinstance(module, nn.Softmax):
            net.set_submodule(name, nn.Identity())
    return net


def _simplified(path: Path, written: Path) -> onnxruntime.InferenceSession:
    """Writes the network with constants folded, but normalizations kept."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.intra_op_num_threads, options.log_severity_level = str(written), 1, 3
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"], disabled_optimizers={"ConvBNFusion"})


def _padded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with pads where convolutions have `auto_pad`, which onnx2torch does not read."""
    for node in model.graph.node:
        named = {attribute.name: attribute for attribute in node.attribute}
        if "auto_pad" in named and named["auto_pad"].s == SAME:
            sides = [size // 2 for size in named["kernel_shape"].ints]
            node.attribute.remove(named["auto_pad"])
            node.attribute.append(onnx.helper.make_attribute("pads", sides * 2))
    return model


def _convert(model: onnx.ModelProto) -> fx.GraphModule:
    """Converts without torchvision: onnx2torch imports it for operators that no network here has; not every build fits torch."""
    for name in ("torchvision", "torchvision.ops"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["torchvision.ops"].__dict__.setdefault("roi_align", None)
    from onnx2torch import convert

    return convert(model)


def _fix(net: fx.GraphModule, node: fx.Node) -> None:
    """Gives a module its constant as numbers: torch.export does not follow those in tensors."""
    name, constant = str(node.target), node.args[-1]
    kind = type(net.get_submodule(name)).__name__
    if kind in _FIXED and constant.op == "get_attr":
        net.set_submodule(name, _Fixed(_FIXED[kind], net.get_buffer(str(constant.target)).tolist()))
        node.args = node.args[:1]


def _reshaped(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """0 stands for the size that was there."""
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape)])


#: Modules of onnx2torch whose second input is a constant, and what they do.
_FIXED: dict[str, Callable[[torch.Tensor, Sequence[int]], torch.Tensor]] = {
    "OnnxReshape": _reshaped,
    "OnnxSqueezeDynamicAxes": lambda x, axes: x.squeeze(tuple(axes)),
}


class _Fixed(nn.Module):
    """A function with a constant for its second argument."""

    def __init__(
        self, function: Callable[[torch.Tensor, Sequence[int]], torch.Tensor], constant: Sequence[int]
    ) -> None:
        super().__init__()
        self.function, self.constant = function, constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The function of `x` and the constant."""
        return self.function(x, self.constant)


def layers(net: nn.Module) -> list[str]:
    """Names of the layers with weights, in order of execution."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def folded(net: fx.GraphModule) -> fx.GraphModule:
    """The network with its normalizations folded into the convolutions before them; others become factors and terms."""
    for name, norm in _normalizations(net).items():
        net.set_submodule(name, fuse_conv_bn_eval(net.get_submodule(name), net.get_submodule(norm)))
        net.set_submodule(norm, nn.Identity())
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, _Affine(module))
    return net


def normalized(net: fx.GraphModule, images: torch.Tensor) -> fx.GraphModule:
    """The same function with normalizations: those of the file, or where it has none, one behind every convolution."""
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return net
    bare = [name for name in layers(net) if isinstance(net.get_submodule(name), nn.Conv2d)]
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
        if node.op == "call_module"
        and isinstance(named[str(node.target)], nn.BatchNorm2d)
        and isinstance(named[str(node.args[0].target)], nn.Conv2d)
    }


class _Affine(nn.Module):
    """What a normalization with statistics that stay does: a factor and a term for each channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.factor = nn.Parameter(factor.detach().reshape(-1, 1, 1))
        self.term = nn.Parameter((norm.bias - norm.running_mean * factor).detach().reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The channels, scaled and shifted."""
        return x * self.factor + self.term
