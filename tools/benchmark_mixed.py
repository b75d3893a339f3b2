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
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

import onnxqat
from models import fashion_mnist
from onnxqat import Config, Override
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.process.processor import processor
from onnxqat.runtime.toggles import readers
from onnxqat.training.optimize.schedules import Cosine
from tools.packages import FOLDER
from tools.readme import BENCHMARKS, line, replace_section
from tools.real_models.model import Batch, Data, Examples, labels_of, outputs_of, share_right
from tools.real_models.recipes import MODELS
from tools.real_models.run import first_output
from tools.real_models.run import kept as made

ROOT = Path(__file__).parents[1]
KEPT = FOLDER.parent / "mixed.jsonl"
#: Mean width, steps and rate of each network: the uniform model loses at this width on training data, and the rate suits it.
SUBJECTS = {
    "resnet20": (3, 40, 1e-3),
    "separable": (3, 40, 1e-3),
    "super_resolution": (3, 40, 1e-3),
    "orientation": (4, 40, 1e-3),
    "sentences": (3, 40, 1e-3),
}
SEEDS = (0, 1)
#: Batches of test images that the demo's networks are judged on.
IMAGES = 79
WAYS = ("uniform", "random", "mixed")


@cache
def data_of(name: str) -> Data:
    """The network's data, with a score in percent or dB."""
    real = {model.name: model for model in MODELS}
    if name in real:
        return real[name].data()
    layout = "_nhwc" if name == "separable" else ""
    train, test = (getattr(fashion_mnist, f"{split}{layout}")() for split in ("train", "test"))
    read = [Examples({"image": one["image"]}, []) for one in islice(iter(train), 40)]
    judged_on = [Examples({"image": one["image"]}, list(one["label"])) for one in islice(iter(test), IMAGES)]
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
    if way == "random":
        return shuffled(
            io.load(onnxqat.insert(path_of(name), data.inputs()[:1], config.uncalibrated())), config, mean, seed
        )
    start = time.process_time()
    found = onnxqat.mixed_precision(path_of(name), data.inputs(), config, bits=float(mean), seed=seed)
    return found.config, found.bits, time.process_time() - start


def shuffled(qdq: ir.Model, config: Config, mean: int, seed: int) -> tuple[Config, float, float]:
    """Widths drawn at random, each layer's alike, until their mean is within 0.05 below the budget.

    They are drawn with chances that fall with the bits that a width takes in all, so that their mean is the budget's: of draws
    that take the same bits all are then as likely as with equal chances, of which nearly none of many layers would fit.
    """
    read = ((names, constant(quantizer.source)) for quantizer, names in readers(qdq))
    sizes = {names: array.size for names, array in read if array is not None}
    random, choices, shares = np.random.default_rng((seed, 7)), np.arange(2, 9), np.array(list(sizes.values()))
    shares = shares / shares.sum()

    def chances(slope: float) -> Any:
        """For each layer its chance of each width."""
        return softmax(-slope * shares[:, None] * choices, axis=1)

    slope = brentq(lambda slope: shares @ chances(slope) @ choices - mean, -1e4, 1e4)
    while True:
        widths = {names: random.choice(choices, p=each) for names, each in zip(sizes, chances(slope), strict=True)}
        share = sum(int(widths[names]) * size for names, size in sizes.items()) / sum(sizes.values())
        if mean - 0.05 < share <= mean:
            rules = (Override(name=node, weight_bits=int(bits)) for names, bits in widths.items() for node in names)
            return config.model_copy(update={"overrides": tuple(rules)}), share, 0.0


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
    mean, steps, rate = SUBJECTS[name]
    folder = KEPT.with_suffix("") / f"{name}, {mean}, {way}, {seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "settings.json").exists():
        config, *facts = configuration(name, way, seed, data)
        (folder / "facts.json").write_text(json.dumps(facts))
        (folder / "settings.json").write_text(config.model_dump_json(exclude_defaults=True))
    config, (bits, seconds) = (
        Config.from_json(folder / "settings.json"),
        json.loads((folder / "facts.json").read_text()),
    )
    qdq = made(folder / "inserted.onnx", partial(onnxqat.insert, teacher, data.inputs()[:16], config))
    plan = steps, rate, seed
    model = made(folder / f"{plan}.onnx", partial(trained, qdq, teacher, data.inputs(), plan))
    whole = answers(name)
    about = {"name": name, "way": way, "seed": seed, "bits": round(bits, 3), "seconds": round(seconds, 1)}
    found = {**about, "plan": list(SUBJECTS[name]), "float": data.score(whole, labels_of(data.test))}
    for stage, each in (("inserted", qdq), ("trained", model)):
        outputs = outputs_of(first_output(onnxqat.fold(each)), data.test)
        found[stage] = data.score(outputs, labels_of(data.test))
        found[f"distance_{stage}"] = distance(whole, outputs)
    return {**found, "processor": processor()}


@cache
def answers(name: str) -> list[NDArray[Any]]:
    """The float model's outputs on the data that it is judged on."""
    return outputs_of(first_output(onnx.load(path_of(name))), data_of(name).test)


def distance(whole: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
    """Squared error of a model's outputs over the square of the float model's, which has far less chance in it than a score."""
    apart = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(whole, outputs, strict=True))
    return apart / sum(float(np.square(a, dtype=np.float64).sum()) for a in whole)


def kept() -> dict[tuple[str, str, int], dict[str, Any]]:
    """What has been measured with the plan as it is."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    found = [json.loads(line) for line in lines]
    return {
        (one["name"], one["way"], one["seed"]): one
        for one in found
        if one.get("plan") == list(SUBJECTS.get(one["name"], ()))
    }


def table(found: Mapping[tuple[str, str, int], dict[str, Any]]) -> Iterator[str]:
    """Lines of the table; a network that is not complete has none."""
    yield (
        "| network | float | bits | way | inserted, both seeds | trained | over uniform | distance, trained | search |"
    )
    yield "| --- | --: | --: | --- | --: | --: | --: | --: | --: |"
    for name in SUBJECTS:
        if not all((name, way, seed) in found for way in WAYS for seed in SEEDS):
            continue
        for way in WAYS:
            lines = [found[name, way, seed] for seed in SEEDS]
            over = [one["trained"] - found[name, WAYS[0], one["seed"]]["trained"] for one in lines]
            head = f"{name} | {lines[0]['float']:.2f}" if way == WAYS[0] else " | "
            shown = [_both(lines, "bits", ".2f"), way, _both(lines, "inserted", ".2f"), _both(lines, "trained", ".2f")]
            shown.append(" / ".join(f"{one:+.2f}" for one in over) if way != WAYS[0] else "")
            shown += [
                _both(lines, "distance_trained", ".2g"),
                f"{_both(lines, 'seconds', '.0f')} s" if way == "mixed" else "",
            ]
            yield line([head, *shown])


def _both(lines: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    return " / ".join(f"{one[key]:{form}}" for one in lines)


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"of {', '.join(SUBJECTS)}; all if none is named")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    for name in [] if arguments.table else arguments.names or SUBJECTS:
        for seed in SEEDS:
            for way in WAYS:
                if (name, way, seed) not in kept():
                    text = json.dumps(measured(name, way, seed))
                    with KEPT.open("a") as file:
                        file.write(text + "\n")
                    print(text, flush=True)
    lines = list(table(kept()))
    print("\n".join(lines))
    if arguments.write:
        about = f"Measured on {processor()}; other work shared it."
        replace_section("mixed", "\n".join([*lines, "", about]), BENCHMARKS)


if __name__ == "__main__":
    main()
