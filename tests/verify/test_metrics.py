"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from onnxqat.errors import InputError
from onnxqat.verify.metrics import METRICS, named

SCORES = np.array([[0.1, 0.9, 0, 0, 0, 0], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]], np.float32)


def test_accuracy_counts_the_largest_score():
    assert METRICS["accuracy"](SCORES, np.array([1, 1])).tolist() == [1, 0]


def test_accuracy_of_pixel_classes_is_per_pixel():
    scores = np.stack([np.zeros((1, 2, 2)), np.eye(2)[None]], axis=1)
    assert METRICS["accuracy"](scores, np.array([[[1, 0], [1, 1]]])).tolist() == [[[1, 1], [0, 1]]]


def test_labels_may_stand_in_a_column():
    assert METRICS["accuracy"](SCORES, np.array([[1], [0]])).tolist() == [1, 1]


def test_top5_counts_the_five_largest_scores():
    assert METRICS["top5"](SCORES, np.array([0, 5])).tolist() == [1, 0]


def test_mse_is_per_sample():
    assert METRICS["mse"](np.array([[0.0, 2.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])).tolist() == [2, 0]


def test_psnr_is_in_decibels_for_a_full_range_of_one():
    output, label = np.zeros((2, 4)), np.array([[0.1] * 4, [0.0] * 4])
    assert METRICS["psnr"](output, label) == pytest.approx([20, 100])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0, 6]), "holds 0 to 6, the model has classes 0 to 5"),
        (np.array([-1, 0]), "holds -1 to 0, the model has classes 0 to 5"),
        (np.array([0.0, 1.0]), "class numbers of shape"),
        (np.array([0, 1, 2]), "class numbers of shape"),
    ],
    ids=["too large", "negative", "not whole", "too many"],
)
def test_labels_that_do_not_fit_are_refused(label, message):
    with pytest.raises(InputError, match=message):
        METRICS["accuracy"](SCORES, label)


def test_outputs_without_classes_are_refused():
    with pytest.raises(InputError, match="no class scores"):
        METRICS["accuracy"](np.zeros(3), np.zeros(3, np.int64))


def test_unknown_metric_is_refused():
    with pytest.raises(InputError, match="'accurracy': is not one of 'accuracy', 'top5', 'mse', 'psnr'"):
        named("accurracy")
