"""Metrics against the libraries that people judge with, over data cut into batches."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn import metrics

from onnxqat.data.labels import Decisions
from onnxqat.errors import InputError
from onnxqat.metrics.table import NAMES, Tally, named

RNG = np.random.default_rng(0)
LOGITS, CLASSES = RNG.normal(size=(90, 5)), RNG.integers(0, 4, 90)  # of class 4 there is none
PIXELS, MASKS = RNG.normal(size=(12, 3, 4, 4)), RNG.integers(0, 3, (12, 4, 4))
TAGS, TAGGED = RNG.normal(size=(60, 4)), RNG.integers(0, 2, (60, 4))
IMAGES = RNG.random((6, 3, 16, 16))
NOISY = np.clip(IMAGES + 0.1 * RNG.normal(size=IMAGES.shape), 0, 1)


def score(name, output, label, batch=7, **decisions):
    tally = Tally(named(name, Decisions(**decisions)))
    for start in range(0, len(label), batch):
        tally.add(output[start : start + batch], label[start : start + batch])
    return tally.score


def argmax(scores):
    return scores.argmax(axis=1).ravel()


@pytest.mark.parametrize(
    ("name", "output", "label", "expected"),
    [
        ("f1", LOGITS, CLASSES, metrics.f1_score(CLASSES, argmax(LOGITS), average="macro")),
        ("iou", PIXELS, MASKS, metrics.jaccard_score(MASKS.ravel(), argmax(PIXELS), average="macro")),
        ("top2", LOGITS, CLASSES, metrics.top_k_accuracy_score(CLASSES, LOGITS, k=2, labels=range(5))),
        ("pearson", NOISY, IMAGES, pearsonr(NOISY.ravel(), IMAGES.ravel()).statistic),
        (
            "perplexity",
            LOGITS,
            CLASSES,
            torch.nn.functional.cross_entropy(torch.tensor(LOGITS), torch.tensor(CLASSES)).exp().item(),
        ),
        (
            "map",
            LOGITS,
            CLASSES,
            metrics.average_precision_score(np.eye(5)[CLASSES][:, :4], torch.tensor(LOGITS).softmax(1)[:, :4]),
        ),
    ],
    ids=["f1", "iou", "top2", "pearson", "perplexity", "map"],
)
def test_score_is_that_of_the_library(name, output, label, expected):
    assert score(name, output, label, axis=1) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", metrics.f1_score(TAGGED, TAGS > 0.5, average="macro")),
        ("map", metrics.average_precision_score(TAGGED, TAGS)),
    ],
)
def test_outputs_of_sigmoids_are_classes_of_their_own(name, expected):
    assert score(name, TAGS, TAGGED, activation="Sigmoid") == pytest.approx(expected, abs=1e-9)


def test_identical_images_have_a_similarity_of_1_and_noisy_ones_less():
    assert score("ssim", IMAGES, IMAGES) == pytest.approx(1)
    assert 0.5 < score("ssim", NOISY, IMAGES) < 0.99
    assert score("ssim", NOISY.transpose(0, 2, 3, 1), IMAGES.transpose(0, 2, 3, 1)) == pytest.approx(
        score("ssim", NOISY, IMAGES)
    )


def test_word_errors_are_counted_behind_a_greedy_decoder():
    said = np.array([[0, 3, 3, 0, 3, 2], [1, 1, 1, 0, 0, 0]])  # 3 3 2 and 1
    labels = np.array([[3, 2, -1, -1], [1, 4, 5, -1]])  # one word too many, two too few
    assert score("wer", np.eye(6)[said], labels) == pytest.approx(3 / 5)
    assert score("wer", np.eye(6)[said], said + 0) == 0  # as long as the labels: words as they are


def test_ignored_labels_do_not_count():
    ignored = np.where(np.arange(90) % 3 == 0, 255, CLASSES)
    kept = ignored != 255
    expected = metrics.f1_score(CLASSES[kept], argmax(LOGITS)[kept], average="macro")
    assert score("f1", LOGITS, ignored, axis=1, ignored=255) == pytest.approx(expected)


def test_scores_without_each_batch_are_those_of_the_rest():
    for name in ("f1", "map"):
        tally = Tally(named(name, Decisions(axis=1)))
        for start in (0, 30, 60):
            tally.add(LOGITS[start : start + 30], CLASSES[start : start + 30])
        assert tally.without_each()[0] == pytest.approx(score(name, LOGITS[30:], CLASSES[30:], axis=1))


@pytest.mark.parametrize("name", ["ssim", "wer"])
def test_output_that_a_metric_cannot_take_is_refused(name):
    with pytest.raises(InputError, match=f"metric '{name}'.*choose another metric"):
        score(name, LOGITS, LOGITS)


def test_every_name_is_a_metric_and_losses_are_better_when_lower():
    found = {name: named(name.replace("topK", "top3")) for name in NAMES}
    assert [name for name, metric in found.items() if not metric.higher] == ["mse", "perplexity", "wer"]


def test_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jiwer", None)
    with pytest.raises(InputError, match=r"pip install 'onnxqat\[metrics\]'"):
        score("wer", np.zeros((1, 2, 3)), np.zeros((1, 1), int))


def test_function_of_a_module_is_a_metric(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text("def half(output, label):\n    return 0.5 + 0 * label\n")
    monkeypatch.chdir(tmp_path)
    assert score("my_metrics:half", LOGITS, CLASSES) == 0.5
