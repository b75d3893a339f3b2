import logging

import numpy as np
import onnx
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.pipeline.choices import settled
from onnxqat.pipeline.request import Data, Training
from tests.models import model, random

ROWS = 8
X = random(ROWS, 4, scale=1.0)
LOGITS = model("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=random(4, 3))
DECISION = model("(float[N,4] x) => (float[N,1] y) { y = MatMul(x, w) }", w=random(4, 1))
CLASSES = np.arange(ROWS) % 3


@pytest.mark.parametrize(
    ("net", "label", "loss", "metric", "reason"),
    [
        (LOGITS, CLASSES, "cross_entropy", "accuracy", "labels are classes"),
        (DECISION, np.float32(CLASSES[:, None] == 0), "bce_with_logits", "binary_accuracy", "labels are 0 or 1"),
        (DECISION, np.float32(CLASSES[:, None] / 3), "distill", "mse", "labels are values"),
        (LOGITS, None, "distill", "accuracy", "the data has no labels"),
    ],
    ids=["classes", "decisions", "values", "none"],
)
def test_loss_and_metric_follow_from_the_labels(tmp_path, caplog, net, label, loss, metric, reason):
    caplog.set_level(logging.INFO, "onnxqat")
    np.savez(tmp_path / "a.npz", x=X, **({} if label is None else {"label": label}))
    chosen, judged_by = settled(io.load(net), Data(str(tmp_path / "a.npz")), Training())
    assert (chosen.loss, judged_by) == (loss, metric)
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (CLASSES + 1, "holds 1 to 3, the model has 3 classes"),
        (np.eye(3, dtype=np.float32)[CLASSES], "is one-hot"),
        (CLASSES + 0.5, "class numbers are needed"),
    ],
    ids=["out of range", "one-hot", "fractions"],
)
def test_labels_that_seem_to_be_classes_are_not_left_aside(tmp_path, label, message):
    np.savez(tmp_path / "a.npz", x=X, label=label)
    with pytest.raises(InputError, match=f"{message}.*--loss distill"):
        settled(io.load(LOGITS), Data(str(tmp_path / "a.npz")), Training())


def test_teacher_is_learned_from_and_a_loss_that_is_named_stays(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, label=CLASSES)
    data = Data(str(tmp_path / "a.npz"))
    assert settled(io.load(LOGITS), data, Training(teacher=LOGITS))[0].loss == "distill"
    named = Training(loss=["mse", "l1"])
    assert settled(io.load(LOGITS), data, named) == (named, "mse")
    with pytest.raises(InputError, match="auto stands for one loss"):
        settled(io.load(LOGITS), data, Training(loss=["auto", "l1"]))


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_run_and_train_choose_the_loss(call, tmp_path, labelled):
    float_model, data, qdq, out = (tmp_path / name for name in ("m.onnx", "a.npz", "q.onnx", "o.onnx"))
    onnx.save(LOGITS, float_model)
    np.savez(data, x=X, **({"label": CLASSES} if labelled else {}))
    expected = "loss: cross_entropy, as labels are classes" if labelled else "loss: distill, as the data has no labels"
    status, _, log = call("run", float_model, "--data", data, "--steps", 1, "-o", out)
    assert (status, log.count(expected)) == (0, 1)
    assert call("insert", float_model, "--calibration", data, "-o", qdq)[0] == 0
    status, _, log = call("train", qdq, "--data", data, "--steps", 1, "-o", out)
    assert (status, log.count(expected)) == (0, 1)
