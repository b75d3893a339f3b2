"""Time and memory of a training step, quantization-aware against float: `python -m tools.benchmark_step`.

Both steps are forward, backward and AdamW, by the same engine under the same options, on 8 images of 224 x 224. Times are
taken in turn in one process, so that other work on the machine disturbs both, and compared as the median of the ratios; with
`--cpu` it is the time of one thread on its processor instead, which is steadier on a busy machine. Part of the quantized step is
the hold of weights that keeps processors from saturating (`Config.overflow_fix`); its share, too small for a difference of two
noisy steps, is timed by itself, in turn with them. Peak memory is that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxqat.graph.io as io
from onnxqat.config import Config
from onnxqat.insertion import insert
from onnxqat.training.blocked.probe import block
from onnxqat.training.engine import Engine
from onnxqat.training.feeds import feeds_for
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.optimize.update import Updater
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.training_graph.build import TrainingGraph, load_qdq, training_graph
from tools.networks import NETWORKS

BATCH = 8
Step = Callable[[], None]


def batch(seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random images and labels."""
    random = np.random.default_rng(seed)
    images = random.standard_normal((BATCH, 3, 224, 224), dtype=np.float32)
    return {"image": images, "label": random.integers(0, 1000, BATCH)}


def training_step(path: Path, threads: int) -> Step:
    """One step on the model in a file: quantization-aware where it has quantizers, float where it has none."""
    quantized = any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
    graph = training_graph(load_qdq(path) if quantized else io.load(path), "cross_entropy", block=block())
    engine = Engine(graph.training, graph.evaluation, graph.layout, graph.initial, threads)
    hold = holding(graph, engine.parameters)
    update = Updater(AdamW(), graph.layout, engine.parameters, engine.gradients, hold=hold)
    data = feeds_for(graph, None)(batch())

    def step() -> None:
        engine.step(data)
        update(1e-4, 1, 1.0)

    return step


def holding(graph: TrainingGraph, parameters: NDArray[np.float32]) -> Step:
    """Returns the part of a step that keeps 8-bit weights from saturating."""
    safety, arrays = PairSafety(graph.qdq), graph.layout.named(parameters)
    return lambda: safety.hold(arrays)


def median_times(
    paths: dict[str, Path], threads: int, repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, float], float]:
    """Milliseconds per step of each, and of the hold alone, and the median of the ratios of neighbouring steps."""
    steps = {name: training_step(path, threads) for name, path in paths.items()}
    quantized = training_graph(load_qdq(paths["quantized"]), "cross_entropy")
    steps["hold"] = holding(quantized, quantized.initial)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if repeat:  # the first step allocates
                times[name].append(clock() - start)
    ratio = float(np.median(np.array(times["quantized"]) / np.array(times["float"])))
    return {name: float(np.median(values)) * 1e3 for name, values in times.items()}, ratio


def peak_memory(path: Path, threads: int) -> float:
    """Peak resident memory, in MB, of a process that trains for three steps."""
    command = [sys.executable, "-m", "tools.benchmark_step", "--peak-of", str(path), "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def own_peak() -> float:
    """Peak resident memory of this process in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def write_models(network: str, folder: Path) -> dict[str, Path]:
    """The float model and its Q/DQ model as files."""
    paths = {"float": folder / "float.onnx", "quantized": folder / "quantized.onnx"}
    io.save(NETWORKS[network](), paths["float"])
    io.save(insert(paths["float"], calibration=[{"image": batch(1)["image"]}], config=Config()), paths["quantized"])
    return paths


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0, help="threads inside operators, 0: one for each core")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--cpu", action="store_true", help="processor time of one thread instead of elapsed time")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        step = training_step(arguments.peak_of, arguments.threads)
        for _ in range(3):
            step()
        print(own_peak())
        return
    threads, clock = (1, time.thread_time) if arguments.cpu else (arguments.threads, time.perf_counter)
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_models(network, Path(folder))
            times, ratio = median_times(paths, threads, arguments.repeats, clock)
            peaks = {name: peak_memory(path, arguments.threads) for name, path in paths.items()}
        print(
            f"{network}: step {times['quantized']:.0f} ms against {times['float']:.0f} ms float, ratio {ratio:.2f}; "
            f"of it {times['hold']:.1f} ms, {times['hold'] / times['quantized']:.1%}, to hold weights; "
            f"peak memory {peaks['quantized']:.0f} MB against {peaks['float']:.0f} MB, "
            f"ratio {peaks['quantized'] / peaks['float']:.2f}"
        )


if __name__ == "__main__":
    main()
