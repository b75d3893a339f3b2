"""Mixed precision beside uniform widths and random ones, at equal size: a table in docs/benchmarks.md.

    python -m tools.benchmark_mixed [NETWORK ...] [--write]

Weights have one scale each and a mean width that the uniform model has in all layers; activations have 8 bits. Mixed widths are
those of `onnxqat.mixed_precision`; random ones are drawn until they have the same mean. All are trained alike against the float
model, without labels, with two seeds of the order of the data, of the probes and of the random widths. What has been measured is
kept in .cache, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxqat
from models import fashion_mnist
from onnxqat import Config, Override
from onnxqat.process.processor import processor
from onnxqat.training.optimize.schedules import Cosine
from tools.packages import FOLDER
from tools.readme import BENCHMARKS, replace_section
from tools.real_models.model import Batch, Data, Examples, share_right
from tools.real_models.recipes import MODELS
from tools.real_models.run import judged

ROOT = Path(__file__).parents[1]
KEPT = FOLDER.parent / "mixed.jsonl"
#: Mean width, steps and rate of each network; the rate suits the uniform model.
SUBJECTS = {
    "resnet20": (3, 40, 1e-3),
    "separable": (4, 40, 1e-3),
    "pitch": (4, 40, 1e-3),
    "orientation": (4, 40, 1e-3),
    "file_type": (3, 40, 1e-3),
}
SEEDS = (0, 1)
WAYS = ("uniform", "random", "mixed")


def data_of(name: str) -> Data:
    """The network's data, with a score in percent."""
    real = {model.name: model for model in MODELS}
    if name in real:
        return real[name].data()
    layout = "_nhwc" if name == "separable" else ""
    train, test = (getattr(fashion_mnist, f"{split}{layout}")() for split in ("train", "test"))
    read = [Examples({"image": one["image"]}, []) for one in islice(iter(train), 40)]
    judged_on = [Examples({"image": one["image"]}, list(one["label"])) for one in islice(iter(test), 32)]
    return Data(read, judged_on, share_right)


def path_of(name: str) -> Path:
    """The network's file."""
    own = ROOT / "models" / f"{name}.onnx"
    return own if own.exists() else FOLDER / f"{name}.onnx"


def configuration(name: str, way: str, seed: int, data: Data) -> tuple[Config, float, float]:
    """Settings of one way, the mean width, and the seconds that finding them took."""
    mean, config = SUBJECTS[name][0], Config(weight_granularity="per_tensor", first_last_bits=None)
    if way == "uniform":
        return config.model_copy(update={"weight_bits": mean}), float(mean), 0.0
    start = time.process_time()
    found = onnxqat.mixed_precision(path_of(name), data.inputs(), config, bits=float(mean), seed=seed)
    if way == "mixed":
        return found.config, found.bits, time.process_time() - start
    nodes = {weight: str(rule.name) for weight, rule in zip(found.widths, found.config.overrides, strict=True)}
    return shuffled(nodes, path_of(name), config, mean, seed)


def shuffled(nodes: Mapping[str, str], path: Path, config: Config, mean: int, seed: int) -> tuple[Config, float, float]:
    """Widths drawn at random, each layer's alike, until their mean is within 0.05 below the budget.

    `nodes` are names of weights, each with the node that reads it.
    """
    elements = {one.name: int(np.prod(one.dims)) for one in onnx.load(path).graph.initializer}
    sizes = np.array([elements[name] for name in nodes], float)
    random = np.random.default_rng((seed, 7))
    while True:
        bits = random.integers(2, 9, len(sizes))
        share = float((bits * sizes).sum() / sizes.sum())
        if mean - 0.05 < share <= mean:
            chosen = [
                Override(name=node, weight_bits=int(width)) for node, width in zip(nodes.values(), bits, strict=True)
            ]
            return config.model_copy(update={"overrides": tuple(chosen)}), share, 0.0


def trained(qdq: onnx.ModelProto, teacher: onnx.ModelProto, batches: list[Batch], plan: tuple[int, float, int]) -> Any:
    """The model after training against the float model."""
    steps, rate, seed = plan
    optimizer = onnxqat.AdamW(lr=rate, relative=True)
    trainer = onnxqat.Trainer(qdq, "distill", optimizer, schedule=Cosine(warmup_steps=10), teacher=teacher)
    trainer.schedule.plan(1, steps)
    random = np.random.default_rng(seed)
    for index in random.integers(0, len(batches), steps):
        trainer.step(batches[index])
    return trainer.model()


def measured(name: str, way: str, seed: int) -> dict[str, Any]:
    """One line of results."""
    data, teacher = data_of(name), onnx.load(path_of(name))
    _, steps, rate = SUBJECTS[name]
    config, bits, seconds = configuration(name, way, seed, data)
    qdq = onnxqat.insert(teacher, data.inputs()[:16], config)
    model = trained(qdq, teacher, data.inputs(), (steps, rate, seed))
    scores = {"inserted": judged(onnxqat.fold(qdq), data), "trained": judged(onnxqat.fold(model), data)}
    whole = judged(teacher, data)
    about = {"name": name, "way": way, "seed": seed, "bits": round(bits, 3), "seconds": round(seconds, 1)}
    return {**about, "float": whole, **scores, "processor": processor()}


def kept() -> dict[tuple[str, str, int], dict[str, Any]]:
    """What has been measured."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    found = [json.loads(line) for line in lines]
    return {(one["name"], one["way"], one["seed"]): one for one in found}


def table(found: Mapping[tuple[str, str, int], dict[str, Any]]) -> Iterator[str]:
    """Lines of the table; a network that is not complete has none."""
    yield "| network | float | bits | way | inserted, both seeds | trained, both seeds | search |"
    yield "| --- | --: | --: | --- | --: | --: | --: |"
    for name in SUBJECTS:
        if not all((name, way, seed) in found for way in WAYS for seed in SEEDS):
            continue
        for way in WAYS:
            lines = [found[name, way, seed] for seed in SEEDS]
            scores = [" / ".join(f"{one[stage]:.2f}" for one in lines) for stage in ("inserted", "trained")]
            bits, search = (
                " / ".join(f"{one[key]:.{d}f}" for one in lines) for key, d in (("bits", 2), ("seconds", 0))
            )
            shown = f"{search} s" if way == "mixed" else ""
            head = f"{name} | {lines[0]['float']:.2f}" if way == WAYS[0] else " | "
            yield f"| {head} | {bits} | {way} | {scores[0]} | {scores[1]} | {shown} |"


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(SUBJECTS)}; all if none is named")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md too")
    arguments = parser.parse_args()
    for name in arguments.names or SUBJECTS:
        for seed in SEEDS:
            for way in WAYS:
                if (name, way, seed) not in kept():
                    line = json.dumps(measured(name, way, seed))
                    with KEPT.open("a") as file:
                        file.write(line + "\n")
                    print(line, flush=True)
    lines = list(table(kept()))
    print("\n".join(lines))
    if arguments.write:
        about = f"Measured on {processor()}; other work shared it."
        replace_section("mixed", "\n".join([*lines, "", about]), BENCHMARKS)


if __name__ == "__main__":
    main()
