"""Six pretrained models from their packages through all stages, judged on labelled data that training never saw.

The models are fetched by `make models`; the recipes are those of the README's table.
"""

import pytest

from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import run

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


def fetched(model: RealModel) -> RealModel:
    if not model.path.exists():
        pytest.skip(f"{model.path.name} is not there; run `python -m tools.fetch_models {model.name}`")
    return model


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_eight_bits_are_as_good_as_float_after_training(model):
    model = fetched(model)
    result = run(model, model.eight, model.data())
    assert result.float_model >= FLOAT[model.name]
    by_chance = 100 * BY_CHANCE / model.test if model.unit == "%" else 0.0
    assert result.deployed >= result.float_model - max(CLOSE[model.unit], by_chance)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_training_recovers_what_few_bits_lost(model):
    model = fetched(model)
    result = run(model, model.low, model.data())
    assert result.inserted < result.float_model - 2 * CLOSE[model.unit]
    assert result.recovered >= RECOVERED[model.name]
