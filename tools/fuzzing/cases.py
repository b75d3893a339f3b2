"""A case by its number: a good file, what is changed in it, and the commands that read it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.fuzzing import mutate_files, mutate_models
from tools.fuzzing.seeds import CONFIGS, NETWORKS


@dataclass(frozen=True)
class Case:
    """Case to try.

    Attributes:
        what: kind and mutations of the case.
        commands: arguments of the calls, made one after the other as long as they succeed.
        output: path that the calls write to.
        data: good data, on which outputs are judged.
    """

    what: str
    commands: list[list[str]]
    output: Path
    data: Path


def case(seeds: Path, seed: int, number: int, work: Path) -> Case:
    """Makes the files of a case in an empty folder; the same arguments make the same files."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chance = random.Random(f"{seed}/{number}")
    kind = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    return _KINDS[kind][1](seeds, work, chance)


def _float_model(seeds: Path, work: Path, chance: random.Random) -> Case:
    name = chance.choice(list(NETWORKS))
    what = mutate_models.mutated(seeds / f"{name}.float.onnx", work / "m.onnx", chance)
    data, output = seeds / f"{name}.x.npz", work / "out.onnx"
    insert = ["insert", str(work / "m.onnx"), "--calibration", str(data), "-o", str(output)]
    if chance.random() < 0.2:
        insert += ["--target", "openvino"]
    fold = ["fold", str(output), "-o", str(work / "out.onnx")]
    follow = chance.choice([[], [["inspect", str(output)]], [[*fold[:-1], str(work / "int8.onnx")]]])
    return Case(f"float model {name}: {what}", [insert, *follow], output, data)


def _quantized_model(seeds: Path, work: Path, chance: random.Random) -> Case:
    name, stage = chance.choice(list(NETWORKS)), chance.choice(["qdq", "qdq", "int8"])
    what = mutate_models.mutated(seeds / f"{name}.{stage}.onnx", work / "m.onnx", chance)
    model, output = str(work / "m.onnx"), work / "out.onnx"
    commands = {
        "fold": ["fold", model, "-o", str(output)],
        "train": [
            "train",
            model,
            "--data",
            str(seeds / f"{name}.npz"),
            "--loss",
            "mse",
            "--epochs",
            "1",
            "-o",
            str(output),
        ],
        "inspect": ["inspect", model],
        "trainable": ["inspect", model, "--trainable"],
        "eval": ["eval", model, "--data", str(seeds / f"{name}.npz")],
    }
    chosen = chance.choices(list(commands), [4, 2, 1, 1, 1])[0]
    return Case(f"{stage} model {name}: {what}", [commands[chosen]], output, seeds / f"{name}.x.npz")


def _config(seeds: Path, work: Path, chance: random.Random) -> Case:
    which = chance.choice(list(CONFIGS))
    what = mutate_files.mutated_json(seeds / f"{which}.json", work / "c.json", chance)
    output, data = work / "out.onnx", seeds / "convolutions.x.npz"
    model = str(seeds / "convolutions.float.onnx")
    command = ["insert", model, "--calibration", str(data), "--config", str(work / "c.json"), "-o", str(output)]
    return Case(f"configuration {which}: {what}", [command], output, data)


def _data(seeds: Path, work: Path, chance: random.Random) -> Case:
    name = chance.choice(list(NETWORKS))
    labelled = chance.random() < 0.5
    what = mutate_files.mutated_arrays(seeds / f"{name}{'' if labelled else '.x'}.npz", work / "d.npz", chance)
    output, data = work / "out.onnx", str(work / "d.npz")
    insert = ["insert", str(seeds / f"{name}.float.onnx"), "--calibration", data, "-o", str(output)]
    evaluate = ["eval", str(seeds / f"{name}.float.onnx"), "--data", data]
    train = ["train", str(seeds / f"{name}.qdq.onnx"), "--data", data, "--epochs", "1", "-o", str(output)]
    command = chance.choice([insert, evaluate, train]) if labelled else insert
    return Case(f"data {name}: {what}", [command], output, seeds / f"{name}.x.npz")


def _checkpoint(seeds: Path, work: Path, chance: random.Random) -> Case:
    folder = work / "run"
    folder.mkdir()
    what = mutate_files.mutated_checkpoint(seeds / "run.safetensors", folder / "checkpoint-000001.safetensors", chance)
    output = work / "out.onnx"
    train = [
        "train",
        str(seeds / "convolutions.qdq.onnx"),
        "--data",
        str(seeds / "convolutions.npz"),
        "-o",
        str(output),
    ]
    return Case(
        f"checkpoint: {what}", [[*train, "--checkpoint", str(folder), "--resume"]], output, seeds / "convolutions.x.npz"
    )


#: Kinds of cases, and how often each comes.
_KINDS = {
    "float": (5, _float_model),
    "quantized": (4, _quantized_model),
    "config": (2, _config),
    "data": (2, _data),
    "checkpoint": (1, _checkpoint),
}
