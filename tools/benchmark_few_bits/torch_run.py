"""Calibration, judging and training that contestants in PyTorch share: AdamW, cosine, one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from tools.benchmark_few_bits.nets import Net, net
from tools.benchmark_few_bits.task import Clock, Judged, Task
from tools.benchmark_few_bits.torch_net import network


def run(
    task: Task, quantized: Callable[[fx.GraphModule, torch.Tensor], nn.Module], *, training: bool = False
) -> dict[str, Judged]:
    """Results before training, `ptq`, and after it, `qat`.

    Args:
        task: what to run.
        quantized: quantizes a float network, given images to calibrate on.
        training: whether modules are in training mode while they are trained: normalizations then keep statistics.
    """
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    source = net(task.net)
    inputs = torch.from_numpy(np.concatenate([batch[source.input] for batch in source.calibration(task.seed)]))
    floating = network(source.model, inputs[:2])
    teacher, clock = deepcopy(floating), Clock()
    module = quantized(floating, inputs)
    found = {"ptq": judged(module, source, clock.read())}
    if task.rate:
        clock = Clock()
        train(module.train(training), teacher, source, task)
        found["qat"] = judged(module, source, clock.read())
    return found


def train(module: nn.Module, teacher: nn.Module, source: Net, task: Task) -> None:
    """Trains all parameters."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=task.rate, weight_decay=0)
    warmup = task.settings.get("warmup", 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, task.steps, warmup))
    for batch in source.training(task.seed, task.steps):
        inputs = torch.from_numpy(batch[source.input])
        if source.loss == "cross_entropy":
            target = torch.from_numpy(batch["label"])
        else:
            with torch.no_grad():
                target = teacher(inputs)
        loss = LOSSES[source.loss](module(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _divergence(output: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL divergence from the teacher's classes, both as logits, mean over samples."""
    return functional.kl_div(output.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True)


#: Loss of a batch, by name: from the outputs, and the labels or the float network's outputs.
LOSSES = {"cross_entropy": functional.cross_entropy, "divergence": _divergence, "squared": functional.mse_loss}


def _factor(step: int, steps: int, warmup: int) -> float:
    """Half a cosine, after a linear warm-up: as `onnxqat.Cosine`."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def judged(module: nn.Module, source: Net, measured: Mapping[str, float]) -> Judged:
    """The network's scores, in evaluation mode."""
    module.eval()
    with torch.no_grad():
        return Judged(**source.judge(lambda array: module(torch.from_numpy(array)).numpy()), **measured)


def widths(names: list[str], bits: int) -> dict[str, int]:
    """Width in each layer: 8 in the first and the last."""
    return {name: 8 if name in (names[0], names[-1]) else bits for name in names}
