"""Calibration, judging and training that contestants in PyTorch share: AdamW, cosine, one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional

from models import fashion_mnist
from tools.benchmark_few_bits import data
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
    clock, net = Clock(), network(data.MODELS / f"{task.net}.onnx")
    net = quantized(net, images(data.calibration(1, task.seed)))
    found = {"ptq": judged(net, clock.read())}
    if task.rate:
        clock = Clock()
        train(net.train(training), task)
        found["qat"] = judged(net, clock.read())
    return found


def train(net: nn.Module, task: Task) -> None:
    """Trains all parameters."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=task.rate, weight_decay=0)
    warmup = task.settings.get("warmup", 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, task.steps, warmup))
    for batch in data.Training(1, task.seed, task.steps):
        loss = functional.cross_entropy(net(torch.from_numpy(batch["image"])), torch.from_numpy(batch["label"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _factor(step: int, steps: int, warmup: int) -> float:
    """Half a cosine, after a linear warm-up: as `onnxqat.Cosine`."""
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def judged(net: nn.Module, measured: Mapping[str, float]) -> Judged:
    """The network's scores, in evaluation mode."""
    net.eval()
    test, _ = _scores(net, data.test(1))
    validation, loss = _scores(net, data.validation(1))
    return Judged(test=test, validation=validation, loss=loss, **measured)


@torch.no_grad()
def _scores(net: nn.Module, batches: fashion_mnist.Batches) -> tuple[float, float]:
    """Accuracy and mean cross entropy."""
    right = loss = 0.0
    for batch in batches:
        logits, label = net(torch.from_numpy(batch["image"])), torch.from_numpy(batch["label"])
        right += float((logits.argmax(1) == label).sum())
        loss += float(functional.cross_entropy(logits, label, reduction="sum"))
    return right / len(batches.labels), loss / len(batches.labels)


def images(batches: fashion_mnist.Batches) -> torch.Tensor:
    """All images."""
    return torch.from_numpy(fashion_mnist.standardise(batches.images, 1))


def widths(names: list[str], bits: int) -> dict[str, int]:
    """Width in each layer: 8 in the first and the last."""
    return {name: 8 if name in (names[0], names[-1]) else bits for name in names}
