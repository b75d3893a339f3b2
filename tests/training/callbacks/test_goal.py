"""Training that ends as soon as validation is good enough."""

import logging

import pytest

import onnxqat
from onnxqat import AdamW, InputError, Trainer
from tests.models import model
from tests.training.callbacks.test_callbacks import Diary
from tests.training.test_trainer import BODY, WEIGHTS, batches

EASY = batches(8)


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in EASY[:2]])


def fitted(qdq, until, **settings):
    """A trainer after up to 30 epochs toward a bound, and the calls of a callback."""
    trainer, diary = Trainer(qdq, optimizer=AdamW(lr=3e-3)), Diary()
    trainer.fit(EASY, epochs=30, **{"validation": EASY, **settings}, callbacks=[diary], until=until)
    return trainer, diary.calls


def test_training_ends_after_the_epoch_that_reaches_the_bound(qdq):
    losses = [Trainer(qdq).evaluate(EASY)["loss"]]
    trainer = Trainer(qdq, optimizer=AdamW(lr=3e-3))
    for _ in range(3):
        trainer.fit(EASY, epochs=1)
        losses.append(trainer.evaluate(EASY)["loss"])
    assert losses[1] > losses[2] > losses[3]
    ended, calls = fitted(qdq, ("loss", losses[2]))
    assert [call for call in calls if call.startswith("epoch")] == ["epoch 1", "epoch 2"]
    assert ended.evaluate(EASY)["loss"] == pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_bound_that_the_model_is_within_leaves_it_as_it_is(qdq, metric, caplog):
    before = Trainer(qdq).evaluate(EASY)[metric]
    with caplog.at_level(logging.INFO):
        trainer, calls = fitted(qdq, (metric, before))
    assert calls == ["begin", "end"]
    assert not trainer.has_begun
    assert f"before training: validation {metric} is {before:.4f}" in caplog.text


def test_a_bound_that_is_not_reached_is_said_and_the_best_epoch_kept(qdq, caplog):
    trainer = Trainer(qdq)
    trainer.fit(EASY, epochs=1, validation=EASY, until=("accuracy", 1.01))
    assert "until: accuracy of 1.01 was not reached; the best epoch is kept" in caplog.messages
    assert trainer.schedule.position.epoch == 1


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        ("cross_entropy", {"until": ("top5", 0.9)}, "validation gives no 'top5'"),
        ("cross_entropy", {"until": ("accuracy", float("nan"))}, "accuracy of nan cannot be reached; give a number"),
        ("cross_entropy", {"until": ("accuracy", 0.9), "validation": None}, "none is given; give validation data"),
        ("cross_entropy", {"until": ("accuracy", 0.9), "validation": iter(EASY)}, "validation: a list_iterator can be read once"),
        ("distill", {"until": ("accuracy", 0.9)}, "validation gives no 'accuracy'; use 'loss'"),
    ],
)  # fmt: skip
def test_a_bound_that_cannot_be_judged_is_refused(qdq, loss, settings, message):
    trainer = Trainer(qdq, loss=loss)
    with pytest.raises(InputError, match=message):
        trainer.fit(EASY, epochs=1, **{"validation": EASY, **settings})
    assert not trainer.has_begun
