import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat import AdamW, Cosine, InputError, Trainer
from onnxqat.data import sources
from onnxqat.graph import io
from onnxqat.pipeline.rates import HIGHEST, LOWEST, found_rate
from tests.models import model, random

X = random(256, 8, scale=1.0)
TRUE = random(8, 3, seed=4)
NOISE = np.random.default_rng(0).random(256) < 0.25  # without wrong labels, no step could be too large
LABELS = np.where(NOISE, np.arange(256) % 3, (X @ TRUE).argmax(axis=1))
NET = model("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", w=random(8, 3, scale=0.1))
ROWS = onnxqat.data.Rows({"x": X, "label": LABELS}, 16)


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(NET, ROWS)


def rate_of(qdq, data=ROWS, seed=0):
    return found_rate(Trainer(qdq), sources.batches(data, io.load(qdq)), seed)


def loss_at(qdq, rate):
    trainer = Trainer(qdq, optimizer=AdamW(lr=rate), schedule=Cosine())
    trainer.fit(ROWS, epochs=3)
    return trainer.evaluate(ROWS)["loss"]


def test_the_rate_is_found_again_and_trains_better_than_far_lower_and_higher_ones(qdq):
    rate = rate_of(qdq)
    assert rate == rate_of(qdq)
    assert LOWEST < rate < HIGHEST
    assert loss_at(qdq, rate) < min(loss_at(qdq, rate / 100), loss_at(qdq, 100 * rate))


def test_a_model_that_every_step_makes_worse_gets_the_lowest_rate(qdq):
    best = Trainer(qdq, "distill")
    unlabelled = onnxqat.data.Rows({"x": X}, 16)
    rate = found_rate(best, sources.batches(unlabelled, io.load(qdq)))
    assert rate < 1e-3


@pytest.mark.parametrize(
    ("data", "message"),
    [(onnxqat.data.Rows({"x": X, "label": LABELS}, 256), "a single batch"), (iter(ROWS), "can be read once")],
)
def test_data_that_cannot_be_held_back_is_refused(qdq, data, message):
    with pytest.raises(InputError, match=message):
        rate_of(qdq, data)


def test_command_line_finds_the_rate(call, tmp_path, qdq):
    onnx.save(qdq, tmp_path / "q.onnx")
    np.savez(tmp_path / "a.npz", x=X, label=LABELS)
    given = ("train", tmp_path / "q.onnx", "--data", tmp_path / "a.npz", "--batch-size", 16, "--epochs", 1)
    status, _, log = call(*given, "--lr", "auto", "-o", tmp_path / "o.onnx")
    assert status == 0
    assert "rate: " in log
    status, _, log = call(*given, "--lr", "fast", "-o", tmp_path / "o.onnx")
    assert (status, "--lr fast: is neither a number nor auto" in log) == (2, True)
