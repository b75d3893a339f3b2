"""Time of a training step in the blocked layout against the plain one: `python -m tools.benchmark_layout`.

Both steps are forward and backward of the quantized model, taken in turn in one process with one thread, so that other work on
the machine disturbs both. Times are processor time of that thread; ratios are the median of those of neighbouring steps.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxqat.insertion import insert
from onnxqat.training.blocked.probe import block
from onnxqat.training.engine import Engine
from onnxqat.training.feeds import feeds_for
from onnxqat.training.training_graph.build import load_qdq, training_graph
from tools.networks import NETWORKS
from tools.processor import processor

Step = Callable[[], float]


def resnet20() -> onnx.ModelProto:
    """The demo's ResNet-20 for images of 28 x 28."""
    return onnx.load("models/resnet20.onnx")


#: Network, and samples of a batch.
CASES = {"ResNet-20": (resnet20, 128), **{name: (network, 8) for name, network in NETWORKS.items()}}


def step(qdq: onnx.ModelProto, images: NDArray[np.float32], size: int) -> Step:
    """Forward and backward of one batch, in blocks of this size; 0: in the plain layout."""
    graph = training_graph(load_qdq(qdq), "cross_entropy", block=size)
    engine = Engine(graph.training, graph.evaluation, graph.layout, graph.initial, threads=1)
    feeds = feeds_for(graph, None)({"image": images, "label": np.arange(len(images)) % 10})
    return lambda: engine.step(feeds)


def times(steps: dict[str, Step], repeats: int) -> dict[str, NDArray[np.float64]]:
    """Seconds of each step in turn; the first round, which allocates, does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, one in steps.items():
            start = time.thread_time()
            one()
            taken[name].append(time.thread_time() - start)
    return {name: np.array(values[1:]) for name, values in taken.items()}


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("networks", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    arguments = parser.parse_args()
    print(f"{processor()}; blocks of {block()} channels; load {os.getloadavg()[0]:.1f}")
    for name in arguments.networks:
        network, rows = CASES[name]
        model = network()
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        images = np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)
        qdq = insert(model, calibration=[{"image": images}])
        taken = times({"plain": step(qdq, images, 0), "blocked": step(qdq, images, block())}, arguments.repeats)
        ratio = np.median(taken["blocked"] / taken["plain"])
        plain, blocked = (np.median(values) * 1e3 for values in taken.values())
        print(
            f"{name}, batch {rows}: {blocked:.0f} ms blocked against {plain:.0f} ms plain, ratio {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
