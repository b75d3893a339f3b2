"""Whole training steps on one thread and on several, beside PyTorch's float32 step: `python -m tools.benchmark_threads`.

Steps are forward, backward and AdamW on random data: ours on the Q/DQ model, PyTorch's on the float model, BatchNormalization
folded, in both of its layouts. All take turns in one process, so that other work on the machine disturbs all alike; ratios are
medians of those of neighbouring turns. The load that the machine had is printed first.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch.nn import functional

import onnxqat
from tools.networks import NETWORKS

Step = Callable[[], object]
RESNET20 = Path(__file__).parents[1] / "models/resnet20.onnx"


@dataclass(frozen=True)
class Task:
    """A network and its batch.

    Attributes:
        model: the float model.
        shape: of a batch.
        classes: number of classes.
    """

    model: onnx.ModelProto
    shape: tuple[int, ...]
    classes: int

    def batch(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Random images and labels."""
        random = np.random.default_rng(0)
        return random.standard_normal(self.shape, dtype=np.float32), random.integers(0, self.classes, self.shape[0])


def tasks() -> dict[str, Task]:
    """The networks by name."""
    large = {name: Task(network(), (8, 3, 224, 224), 1000) for name, network in NETWORKS.items()}
    return {"ResNet-20": Task(onnx.load(RESNET20), (128, 1, 28, 28), 10), **large}


def ours(task: Task, threads: int) -> Step:
    """A step of `Trainer`."""
    images, labels = task.batch()
    name = task.model.graph.input[0].name
    qdq = onnxqat.insert(task.model, [{name: images[:2]}])
    trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-5), threads=threads)
    return lambda: trainer.step({name: images, "label": labels})


def in_torch(task: Task, threads: int, layout: torch.memory_format) -> Step:
    """A float32 step of the same network in PyTorch."""
    images, labels = (torch.from_numpy(array) for array in task.batch())
    images = images.contiguous(memory_format=layout)
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in task.model.graph.initializer}
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.ndim:
            formatted = weight.contiguous(memory_format=layout) if weight.ndim == 4 else weight
            weights[name] = formatted.requires_grad_()
    trained = [weight for weight in weights.values() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        torch.set_num_threads(threads)
        optimizer.zero_grad()
        functional.cross_entropy(_run(task.model.graph, weights, images), labels).backward()
        optimizer.step()

    return step


def _run(graph: onnx.GraphProto, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    values = {**weights, graph.input[0].name: images}
    for node in graph.node:
        read = [values.get(name) for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        values[node.output[0]] = _OPERATORS[node.op_type](*read, **attributes)
    return values[graph.output[0].name]


def _conv(x, w, b=None, *, strides=(1, 1), pads=(0, 0, 0, 0), group=1, **_):  # noqa: ANN001, ANN003, ANN202
    return functional.conv2d(x, w, b, stride=tuple(strides), padding=tuple(pads[:2]), groups=group)


def _pool(x, *, kernel_shape, strides, pads=(0, 0, 0, 0), **_):  # noqa: ANN001, ANN003, ANN202
    return functional.max_pool2d(x, tuple(kernel_shape), tuple(strides), tuple(pads[:2]))


def _norm(x, w, b, mean, variance, *, epsilon=1e-5, **_):  # noqa: ANN001, ANN003, ANN202
    return functional.batch_norm(x, mean.detach(), variance.detach(), w, b, eps=epsilon)


#: The operators of these networks.
_OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": torch.add,
    "BatchNormalization": _norm,
    "Clip": lambda x, low, high: x.clamp(float(low), float(high)),
    "Conv": _conv,
    "Flatten": lambda x, **_: x.flatten(1),
    "Gemm": lambda x, w, b, **attributes: functional.linear(x, w if attributes.get("transB") else w.T, b),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "MaxPool": _pool,
    "ReduceMean": lambda x, **attributes: x.mean(
        tuple(attributes["axes"]), keepdim=bool(attributes.get("keepdims", 1))
    ),
    "Relu": torch.relu,
}


def measure(steps: dict[str, Step], turns: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each step in each turn; the first turn, which allocates, does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(found) for name, found in times.items()}


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="number of threads beside one")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--torch", action="store_true", help="PyTorch's step too")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for name, task in tasks().items():
        if options.only and name not in options.only:
            continue
        steps: dict[str, Step] = {f"ours, {n}": ours(task, n) for n in (1, options.threads)}
        if options.torch:
            for layout in (torch.contiguous_format, torch.channels_last):
                steps |= {f"torch {layout}, {n}": in_torch(task, n, layout) for n in (1, options.threads)}
        times = measure(steps, options.turns)
        gain = np.median(times["ours, 1"] / times[f"ours, {options.threads}"])
        print(f"{name}: {options.threads} threads gain {gain:.2f}")
        for step, found in times.items():
            own = times[f"ours, {step.rsplit(' ', 1)[1]}"]
            print(f"  {step}: {np.median(found) * 1e3:.0f} ms, ours over it {np.median(own / found):.2f}")


if __name__ == "__main__":
    main()
