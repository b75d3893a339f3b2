"""torchao: quantization of an exported program (PT2E) by its x86 quantizer. Runs in the peers' environment.

Its quantization-aware training by layers (`torchao.quantization.qat`) has linear and embedding layers alone, no convolutions.
"""

from __future__ import annotations

import torch
from torch import fx, nn
from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from tools.benchmark_few_bits import torch_run
from tools.benchmark_few_bits.task import Judged, Task
from tools.benchmark_few_bits.torch_net import folded


def run(task: Task) -> dict[str, Judged]:
    """See `torch_run.run`; ranges follow what training sees, and are not learned."""

    def quantized(net: fx.GraphModule, images: torch.Tensor) -> nn.Module:
        quantizer = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config(is_qat=True))
        dynamic = (dict.fromkeys(range(images.ndim), torch.export.Dim.AUTO),)
        program = torch.export.export(folded(net), (images[:2],), dynamic_shapes=dynamic).module()
        prepared = _Program(prepare_qat_pt2e(program, quantizer)).train()
        with torch.no_grad():
            for part in images.split(128):
                prepared(part)
        return prepared

    return torch_run.run(task, quantized, training=True)


class _Program(nn.Module):
    """An exported program whose mode can be changed as a module's is."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The program's logits."""
        return self.program(images)

    def train(self, mode: bool = True) -> _Program:
        """Changes the mode of normalizations and of what observes ranges."""
        (move_exported_model_to_train if mode else move_exported_model_to_eval)(self.program)
        for module in self.program.modules():
            if hasattr(module, "enable_observer"):
                module.enable_observer() if mode else module.disable_observer()
        return self
