"""Three pretrained networks, trained without labels: what they read is made anew for each run, the same wherever it is made.

One training batch in `CHOOSING` is held back: rates are chosen by the loss on these.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tools.benchmark_few_bits.nets import Batch, Loss, Net, Run, divergence, squared
from tools.packages import FOLDER
from tools.real_models.model import Data, Examples, labels_of

#: Samples that quantizers are set on, and of how many training batches one is held back.
CALIBRATION, CHOOSING = 128, 8


@dataclass(frozen=True)
class Source:
    """Where a network's data comes from.

    Attributes:
        module: of tools.real_models.
        train: number of examples to train on and to choose by.
        test: number of examples to judge by.
        input: name of the network's input.
        loss: of training.
        unit: factor of the judge's score in `Judged`: shares instead of percent.
    """

    module: str
    train: int
    test: int
    input: str
    loss: Loss
    unit: float = 0.01


NETS = {
    "pitch": Source("tones", 1600, 400, "frames", "squared"),
    "orientation": Source("pages", 320, 200, "x", "divergence"),
    "super_resolution": Source("photos", 800, 6, "LR", "squared", 1),
}


def net(name: str) -> Net:
    """A network with its data."""
    source = NETS[name]

    def batches(seed: int) -> Iterator[Batch]:
        read, random = parts(name)[1], np.random.default_rng(seed)
        while True:
            yield from (read[index].inputs for index in random.permutation(len(read)))

    return Net(
        FOLDER / f"{name}.onnx",
        source.input,
        source.loss,
        lambda seed: _first(batches(seed), CALIBRATION // len(_data(name).train[0].labels)),
        lambda seed, steps: _first(batches(seed), steps),
        lambda run: _judged(run, name),
    )


def _first(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def _judged(run: Run, name: str) -> dict[str, float]:
    source, data, held = NETS[name], _data(name), parts(name)[0]
    session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    outputs, teachers = ([one(each) for each in _arrays(held, name)] for one in (run, _float(session)))
    loss = {"divergence": divergence, "squared": squared}[source.loss]
    return {
        "test": source.unit * data.score([run(each) for each in _arrays(data.test, name)], labels_of(data.test)),
        "validation": source.unit * data.score(outputs, labels_of(held)),
        "loss": float(loss(np.concatenate(outputs), np.concatenate(teachers)).mean()),
    }


def _float(session: onnxruntime.InferenceSession) -> Run:
    name = session.get_inputs()[0].name
    return lambda array: session.run(None, {name: array})[0]


def _arrays(examples: list[Examples], name: str) -> list[NDArray[np.float32]]:
    return [each.inputs[NETS[name].input] for each in examples]


@cache
def _data(name: str) -> Data:
    source = NETS[name]
    made: Data = importlib.import_module(f"tools.real_models.{source.module}").data(source.train, source.test)
    return made


def parts(name: str) -> tuple[list[Examples], list[Examples]]:
    """Batches that choose, and those that training and calibration read."""
    train = _data(name).train
    return train[::CHOOSING], [each for index, each in enumerate(train) if index % CHOOSING]
