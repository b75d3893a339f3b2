"""Verdicts on a float model that does not belong to the data, on made-up outputs."""

import numpy as np
import pytest

from onnxqat.data.labels import Decisions
from onnxqat.metrics.table import named
from onnxqat.verification.baseline import Baseline

CLASSES = 5
LABELS = np.arange(200) % CLASSES


def scores(answers: np.ndarray, certainty: float = 3.0) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[answers] * certainty


def baseline(metric: str, output: np.ndarray, label: np.ndarray | None, image: np.ndarray | None = None) -> Baseline:
    decisions = Decisions(axis=1)
    found = Baseline(named(metric, decisions), decisions)
    image = np.zeros((len(output), 1), np.float32) if image is None else image
    for part in np.array_split(np.arange(len(output)), 3):
        found.add({"image": image[part]}, output[part], None if label is None else label[part])
    return found


def test_a_good_model_is_not_suspected():
    wrong_at_times = np.where(LABELS % 7 == 0, 1, LABELS)
    found = baseline("accuracy", scores(wrong_at_times), LABELS)
    assert found.score == pytest.approx((wrong_at_times == LABELS).mean())
    assert found.suspicion is None
    assert baseline("accuracy", scores(wrong_at_times), None).suspicion is None


def test_a_classifier_at_chance_is_reported_with_what_to_check():
    said = baseline("accuracy", scores(np.zeros(200, int)), LABELS).suspicion
    assert "is at chance: its accuracy is 20.00 %, a constant answer's 20.00 %" in said
    assert "NCHW or NHWC" in said


@pytest.mark.parametrize("shift", [-1, 1])
def test_shifted_labels_are_recognized(shift):
    shifted = np.clip(LABELS - shift, 0, CLASSES - 1)
    assert f"with label {shift:+d} its accuracy is" in baseline("accuracy", scores(LABELS), shifted).suspicion


def test_raw_pixels_are_pointed_out():
    image = np.linspace(0, 255, 200, dtype=np.float32)[:, None]
    said = baseline("accuracy", scores(np.zeros(200, int)), LABELS, image).suspicion
    assert "input 'image' runs from 0 to 255: scale it" in said


def test_a_classifier_that_is_wrong_with_certainty_is_reported_though_not_at_chance():
    often_wrong = np.where(np.arange(200) % 10 < 6, (LABELS + 1) % CLASSES, LABELS)
    said = baseline("accuracy", scores(often_wrong, 40.0), LABELS).suspicion
    assert "worse than a constant answer: its cross entropy is 24" in said
    assert baseline("accuracy", scores(often_wrong, 1.5), LABELS).suspicion is None


def test_probabilities_are_taken_as_such():
    share = np.exp(scores(LABELS)) / np.exp(scores(LABELS)).sum(axis=1, keepdims=True)
    by_shares, by_logits = (baseline("accuracy", output, LABELS).surprise for output in (share, scores(LABELS)))
    np.testing.assert_allclose(by_shares, by_logits, rtol=1e-5)


@pytest.mark.parametrize("metric", ["mse", "psnr"])
def test_a_regression_far_above_a_constant_answer_is_reported(metric):
    label = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert "its squared error is" in baseline(metric, label + 3, label).suspicion
    assert baseline(metric, label + 0.1, label).suspicion is None
    assert baseline(metric, label, label).constant == pytest.approx(label.var(), rel=1e-5)


def test_a_constant_answer_to_uneven_classes_is_the_most_frequent_one():
    label = np.where(np.arange(200) % 10, 0, 1)
    found = baseline("accuracy", scores(np.zeros(200, int)), label)
    assert found.constant == pytest.approx(0.9)
    assert "is at chance" in found.suspicion
    assert baseline("top4", scores(label), label).suspicion is None
