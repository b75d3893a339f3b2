"""Throughput of data-parallel training: `python -m tools.benchmark_distributed`.

Two processes of one thread, each on half of a batch, against one process of one and of two threads on all of it, on a Q/DQ
model of a network of `tools.networks`. The three take turns in one run, so that other work on the machine disturbs all alike.
Each turn's time is the median over its steps (of the slower process, where there are two), and ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import onnxqat
from onnxqat.distributed import Workers
from onnxqat.process.launch import launched
from tools.networks import NETWORKS

#: Processes and threads of each contestant.
CONTESTANTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}


def batch(rows: int) -> dict[str, NDArray[Any]]:
    """Random images and labels."""
    random = np.random.default_rng(0)
    images = random.standard_normal((rows, 3, 224, 224), dtype=np.float32)
    return {"image": images, "label": random.integers(0, 1000, rows)}


def measure(model: Path, rows: int, threads: int, steps: int) -> None:
    """In a process of its own: prints the median seconds of a step, and of only the all-reduce of the gradients."""
    trainer = onnxqat.Trainer(model, threads=threads, distributed=launched())
    data = batch(rows)
    workers = Workers.join() if launched() else Workers()
    gradients = np.zeros_like(trainer.state.parameters)
    times: dict[str, list[float]] = {"step": [], "all-reduce": []}
    for step in range(steps + 1):
        start = time.perf_counter()
        trainer.step(data)
        middle = time.perf_counter()
        workers.sum(gradients)
        if step:  # the first step allocates
            times["step"].append(middle - start)
            times["all-reduce"].append(time.perf_counter() - middle)
    medians = np.array([np.median(values) for values in times.values()])
    print(json.dumps({**dict(zip(times, medians, strict=True)), "bytes": gradients.nbytes}), flush=True)


def turn(model: Path, rows: int, processes: int, threads: int, steps: int) -> dict[str, float]:
    """Runs one contestant; returns what its slowest process measured."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    arguments = ["--model", str(model), "--batch", str(rows), "--threads", str(threads), "--steps", str(steps)]
    command = [sys.executable, *launcher, "-m", "tools.benchmark_distributed", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = [json.loads(text) for text in re.findall(r"\{[^}]*\}", output)]  # two may share a line
    assert len(found) == processes, output
    return max(found, key=lambda one: float(one["step"]))


def main() -> None:
    """Prints a line for each contestant, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="MobileNetV2")
    parser.add_argument("--batch", type=int, default=16, help="rows of the whole batch")
    parser.add_argument("--steps", type=int, default=8, help="timed steps in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.model is not None:
        measure(arguments.model, arguments.batch, arguments.threads, arguments.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "qdq.onnx"
        onnxqat.save(onnxqat.insert(NETWORKS[arguments.network](), [{"image": batch(2)["image"]}]), model)
        turns = [
            {name: turn(model, arguments.batch, *how, arguments.steps) for name, how in CONTESTANTS.items()}
            for _ in range(arguments.turns)
        ]
    report(arguments.network, arguments.batch, turns)


def report(network: str, rows: int, turns: list[dict[str, dict[str, float]]]) -> None:
    """Medians over the turns."""
    steps = {name: np.array([one[name]["step"] for one in turns]) for name in CONTESTANTS}
    two = "2 processes, 1 thread each"
    print(f"{network}, batch {rows}, {len(turns)} turns, {turns[0][two]['bytes'] / 1e6:.1f} MB of gradients")
    for name, seconds in steps.items():
        ratio = np.median(steps[two] / seconds)
        print(f"{name:28} {np.median(seconds) * 1e3:7.0f} ms a step; two processes take {ratio:.2f} of it")
    share = np.median([one[two]["all-reduce"] / one[two]["step"] for one in turns])
    print(f"the all-reduce is {share:.1%} of a step")


if __name__ == "__main__":
    main()
