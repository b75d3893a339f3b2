"""One model through all stages by one recipe, or through post-training quantization alone, and the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxqat
from onnxqat import Config
from onnxqat.process.processor import processor
from onnxqat.runtime import Inference
from onnxqat.training.optimize.schedules import Cosine
from tools.packages import FOLDER
from tools.real_models.model import Batch, Data, deviation_of_difference, labels_of, outputs_of
from tools.real_models.recipes import RealModel, Recipe

CALIBRATION_BATCHES, WARMUP_STEPS = 16, 10
#: One training batch of so many is not trained on: it chooses the rate, and whether blocks are reconstructed.
CHOOSING = 8
#: What models note of how they were made.
SECONDS, LOSS = "seconds", "loss"


@dataclass(frozen=True)
class Result:
    """Scores of one model by one recipe, and the deployed model beside the float one.

    Attributes:
        name: of the recipe.
        float_model: score of the float model.
        uncorrected: score after `insert` without correction of outputs.
        inserted: score after `insert`.
        trained: score after training.
        deployed: score of the deployed model, as onnxruntime executes it.
        agreement: share of samples whose largest score is at the same place in the trained and the deployed model.
        size_ratio: deployed over float, of the files.
        latency_ratio: deployed over float, of the median time of a batch.
        integer: weighted layers on integer kernels.
        layers: weighted layers.
        cost: processor time of `insert` over that without correction of outputs.
        rate: learning rate that was chosen.
        blocks: steps of each block's reconstruction before training, that were chosen; 0: not reconstructed.
        processor: processor that all this was measured on.
    """

    name: str
    float_model: float
    uncorrected: float
    inserted: float
    trained: float
    deployed: float
    agreement: float | None
    size_ratio: float
    latency_ratio: float
    integer: int
    layers: int
    cost: float
    rate: float
    blocks: int
    processor: str

    @property
    def recovered(self) -> float:
        """Share of the loss by insertion alone that correction and training have recovered in the deployed model."""
        lost = self.float_model - self.uncorrected
        return (self.deployed - self.uncorrected) / lost if lost > 0 else 1.0


@dataclass(frozen=True)
class PostTraining:
    """Scores of one model without training: weights of 4 bits per channel, activations of 8, as the settings are by default.

    Attributes:
        float_model: score of the float model.
        inserted: score after `insert`.
        reconstructed: score after `reconstruct`, as onnxruntime executes the deployed model.
        error: standard error of its difference to the float model.
        minutes: processor time of `insert` and `reconstruct` together.
        processor: processor that this was measured on.
    """

    float_model: float
    inserted: float
    reconstructed: float
    error: float
    minutes: float
    processor: str


def post_training(model: RealModel, data: Data) -> PostTraining:
    """Insert and reconstruct, on the data for training without its labels."""
    proto, start = onnx.load(model.path), time.process_time()
    inserted = onnxqat.insert(proto, data.inputs()[:CALIBRATION_BATCHES], Config(weight_bits=4))
    deployed = onnxqat.fold(onnxqat.reconstruct(inserted, proto, data.inputs()))
    minutes = (time.process_time() - start) / 60
    whole, found = (outputs_of(first_output(each), data.test) for each in (proto, deployed))
    labels = labels_of(data.test)
    scores = data.score(whole, labels), judged(inserted, data), data.score(found, labels)
    return PostTraining(*scores, deviation_of_difference(data, whole, found), minutes, processor())


def correction_cost(model: RealModel, data: Data) -> float:
    """Processor time of `insert` at few bits over that without correction of outputs."""
    proto, calibration, seconds = onnx.load(model.path), data.inputs()[:CALIBRATION_BATCHES], []
    for config in (
        model.low.uncorrected,
        model.low.uncorrected,
        model.low.config,
    ):  # the first loads what is imported on use
        start = time.process_time()
        onnxqat.insert(proto, calibration, config)
        seconds.append(time.process_time() - start)
    return seconds[2] / seconds[1]


def run(model: RealModel, recipe: Recipe, data: Data, interpreter: Path | None = None) -> Result:
    """Insert, train, fold, verify; `interpreter` runs another onnxruntime for verification.

    What an interrupted run has finished of it is not done again.
    """
    proto, folder = onnx.load(model.path), FOLDER.parent / "real_models" / f"{model.name}, {recipe.name}"
    folder.mkdir(parents=True, exist_ok=True)
    calibration = data.inputs()[:CALIBRATION_BATCHES]
    plain, inserted = (
        kept(folder / name, partial(onnxqat.insert, proto, calibration, config))
        for name, config in (("plain", recipe.uncorrected), ("inserted", recipe.config))
    )
    trained, rate, blocks = best(inserted, proto, data.inputs(), recipe, folder)
    deployed = onnxqat.fold(trained)
    report = onnxqat.verify(
        trained,
        deployed,
        [examples.inputs for examples in data.test[:4]],
        interpreter=interpreter,
        float_model=model.path,
    )
    scores = [judged(m, data) for m in (proto, plain, inserted, trained, deployed)]
    ratios = (report.size.ratio, report.latency.ratio)
    rmtree(folder)
    return Result(
        recipe.name,
        *scores,
        report.agreement,
        *ratios,
        *report.integer_count(),
        float(_facts(inserted)[SECONDS]) / float(_facts(plain)[SECONDS]),
        rate,
        blocks,
        processor(),
    )


def best(
    qdq: onnx.ModelProto, teacher: onnx.ModelProto, batches: list[Batch], recipe: Recipe, folder: Path
) -> tuple[onnx.ModelProto, float, int]:
    """The model of the way to train that has the least loss on training data which is held back, with its rate and `blocks`."""
    held, read = batches[::CHOOSING], [batch for index, batch in enumerate(batches) if index % CHOOSING]

    def trained(start: onnx.ModelProto, rate: float) -> onnx.ModelProto:
        trainer = train(start, teacher, read, rate, recipe.steps)
        return _noted(trainer.model(), LOSS, trainer.evaluate(held)["loss"])

    tried = []
    for blocks in recipe.blocks:
        start = qdq
        if blocks:
            start = kept(folder / f"{blocks}", partial(onnxqat.reconstruct, qdq, teacher, read, steps=blocks))
        for rate in recipe.rates:
            model = kept(folder / f"{blocks}, {rate}", partial(trained, start, rate))
            tried.append((float(_facts(model)[LOSS]), rate, blocks, model))
    _, rate, blocks, model = min(tried, key=lambda one: one[0])
    return model, rate, blocks


def kept(path: Path, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """The model that an earlier run has left there; else one is made and left. It notes the processor's seconds in itself."""
    if not path.exists():
        start = time.process_time()
        model = make()
        onnx.save(_noted(model, SECONDS, time.process_time() - start), path.with_name("new"))
        path.with_name("new").rename(path)
    return onnx.load(path)


def _noted(model: onnx.ModelProto, key: str, number: float) -> onnx.ModelProto:
    onnx.helper.set_model_props(model, {**_facts(model), key: repr(number)})
    return model


def _facts(model: onnx.ModelProto) -> dict[str, str]:
    return {one.key: one.value for one in model.metadata_props}


def train(
    qdq: onnx.ModelProto, teacher: onnx.ModelProto, batches: list[Batch], rate: float, steps: int
) -> onnxqat.Trainer:
    """Trains against the float model, on batches in random order."""
    optimizer, schedule = onnxqat.AdamW(lr=rate, relative=True), Cosine(warmup_steps=WARMUP_STEPS)
    trainer = onnxqat.Trainer(qdq, loss="distill", optimizer=optimizer, schedule=schedule, teacher=teacher)
    trainer.schedule.plan(1, steps)
    random = np.random.default_rng(0)
    order = np.concatenate([random.permutation(len(batches)) for _ in range(-(-steps // len(batches)))])
    for index in order[:steps]:
        trainer.step(batches[index])
    return trainer


def judged(model: onnx.ModelProto, data: Data) -> float:
    """Score of a model as onnxruntime executes it."""
    return data.judge(first_output(model))


def first_output(model: onnx.ModelProto) -> Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]:
    """A function from a batch to the first output of a model, as onnxruntime executes it."""
    session = Inference(model, integer_kernels=True)
    return lambda batch: next(iter(session(batch).values()))
