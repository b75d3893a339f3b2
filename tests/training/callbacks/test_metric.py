"""The metric that the best epoch is chosen by."""

import numpy as np
import pytest

import onnxqat
from onnxqat import AdamW, InputError, Trainer
from onnxqat.callbacks import EarlyStopping
from onnxqat.metrics.table import Metric
from onnxqat.training.callbacks.ready_made import score_of
from onnxqat.training.callbacks.start import Start
from tests.models import model
from tests.training.callbacks.test_callbacks import Diary
from tests.training.test_trainer import BODY, WEIGHTS, batches

EASY = batches(8)


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in EASY[:2]])


class Falling:
    """A metric of the user's that gets worse with every epoch."""

    __name__ = "falling"

    def __init__(self):
        self.calls = 0

    def __call__(self, output, label):
        self.calls += 1
        return np.full(len(label), -float(self.calls))


def test_the_best_epoch_is_that_of_the_metric(qdq):
    first = Trainer(qdq, optimizer=AdamW(lr=3e-3))
    first.fit(EASY, epochs=1)
    trainer, diary = Trainer(qdq, optimizer=AdamW(lr=3e-3)), Diary()
    trainer.fit(EASY, epochs=9, validation=EASY, metric=Falling(), callbacks=[diary, EarlyStopping(2)])
    assert [call for call in diary.calls if call.startswith("epoch")] == ["epoch 1", "epoch 2", "epoch 3"]
    assert all(np.array_equal(array, first.parameters[name]) for name, array in trainer.parameters.items())


def test_a_metric_that_is_an_error_is_better_when_lower():
    mse = Metric("mse", np.subtract, float, higher=False)
    assert score_of({"train_loss": 1, "validation_mse": 2.0}, mse) == -2


def test_named_metric_is_judged_on_validation_data(qdq):
    seen = []

    class Watch(onnxqat.callbacks.Callback):
        def on_epoch_end(self, trainer, metrics):
            seen.append(metrics)

    trainer = Trainer(qdq)
    trainer.fit(EASY, epochs=1, validation=EASY, metric="f1", callbacks=[Watch()])
    expected = onnxqat.evaluate(trainer.model(), EASY, metric="f1")
    assert seen[0]["validation_f1"] == pytest.approx(expected, abs=0.02)


def test_metric_without_labels_is_refused_before_training(qdq):
    trainer = Trainer(qdq, loss="distill")
    with pytest.raises(InputError, match="metric 'f1': the data has no labels to judge by"):
        trainer.fit(EASY, epochs=1, validation=[{"x": b["x"]} for b in EASY], metric="f1")
    assert not trainer.has_begun


def test_model_before_training_is_kept_where_no_epoch_is_better(qdq, caplog):
    caplog.set_level("INFO", "onnxqat")
    trainer = Trainer(qdq, optimizer=AdamW(lr=3e-3))
    before = {name: array.copy() for name, array in trainer.parameters.items()}
    trainer.fit(EASY, epochs=2, validation=EASY, metric=Falling(), callbacks=[Start(EASY)])
    assert all(np.array_equal(array, before[name]) for name, array in trainer.parameters.items())
    assert "no epoch was better" in caplog.text
    trainer.fit(EASY, epochs=3, validation=EASY, callbacks=[Start(EASY)])
    assert trainer.evaluate(EASY)["loss"] < Trainer(qdq).evaluate(EASY)["loss"]
