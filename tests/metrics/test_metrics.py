"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from onnxqat.data.labels import Decisions
from onnxqat.errors import InputError
from onnxqat.metrics.table import named

SCORES = np.array([[0.1, 0.9, 0, 0, 0, 0], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]], np.float32)


def judged(metric, output, label, **decisions):
    return named(metric, Decisions(**decisions)).values(output, label)


def test_accuracy_counts_the_largest_score():
    assert judged("accuracy", SCORES, np.array([1, 1])).tolist() == [1, 0]


def test_accuracy_of_pixel_classes_is_per_pixel():
    scores = np.stack([np.zeros((1, 2, 2)), np.eye(2)[None]], axis=1)
    assert judged("accuracy", scores, np.array([[[1, 0], [1, 1]]]), axis=1).tolist() == [1, 1, 0, 1]


def test_accuracy_of_tokens_is_along_the_last_axis():
    scores = np.zeros((2, 3, 4))
    scores[..., 2] = 1
    assert judged("accuracy", scores, np.array([[2, 2, 0], [1, 2, 2]])).tolist() == [1, 1, 0, 0, 1, 1]


def test_labels_that_do_not_count_are_left_out():
    assert judged("accuracy", SCORES, np.array([255, 1]), ignored=255).tolist() == [0]
    assert judged("top5", SCORES, np.array([255, 4]), ignored=255).tolist() == [1]


def test_labels_may_stand_in_a_column():
    assert judged("accuracy", SCORES, np.array([[1], [0]])).tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(4,), (4, 1)], ids=["vector", "column"])
@pytest.mark.parametrize(("activation", "hits"), [(None, [1, 0, 1, 1]), ("Sigmoid", [1, 1, 0, 1])])
def test_one_column_is_a_decision_between_two(shape, activation, hits):
    scores, labels = np.array([[-0.3], [0.2], [0.4], [0.9]]), np.array([0, 0, 1, 1]).reshape(shape)
    assert np.ravel(judged("accuracy", scores, labels, activation=activation)).tolist() == hits
    assert np.ravel(judged("binary_accuracy", scores, labels, activation=activation)).tolist() == hits


def test_labels_of_every_element_behind_sigmoid_are_decisions_of_their_own():
    scores, labels = np.array([[0.9, 0.2, 0.7], [0.4, 0.6, 0.1]]), np.array([[1, 0, 0], [1, 1, 0]])
    assert np.ravel(judged("accuracy", scores, labels, activation="Sigmoid")).tolist() == [1, 1, 0, 0, 1, 1]


def test_several_logits_are_decisions_of_their_own_for_binary_accuracy():
    scores, labels = np.array([[3.0, -1.0, 0.2]]), np.array([[True, True, False]])
    assert np.ravel(judged("binary_accuracy", scores, labels)).tolist() == [1, 0, 0]


def test_top5_counts_the_five_largest_scores():
    assert judged("top5", SCORES, np.array([0, 5])).tolist() == [1, 0]


def test_topk_of_all_classes_is_refused_where_the_number_of_classes_is_seen():
    refusal = "metric 'top6': the model has 6 classes, so that every answer is right; choose a K below 6"
    with pytest.raises(InputError, match=refusal):
        judged("top6", SCORES, np.array([0, 5]))
    with pytest.raises(InputError, match=refusal):
        named("top6", Decisions(classes=6))


def test_mse_is_per_sample():
    found = judged("mse", np.array([[0.0, 2.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert found.tolist() == [2, 0]


def test_mse_of_a_time_first_output_is_per_sample():
    output, label = np.array([[0.0, 2.0, 1.0], [2.0, 2.0, 1.0]]), np.ones((2, 3))
    assert judged("mse", output, label, samples=1).tolist() == [1, 1, 0]


def test_psnr_is_in_decibels_for_a_full_range_of_one():
    output, label = np.zeros((2, 4)), np.array([[0.1] * 4, [0.0] * 4])
    assert judged("psnr", output, label) == pytest.approx([20, 100])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0, 6]), "holds 0 to 6, the model has 6 classes, 0 to 5"),
        (np.array([-1, 0]), "holds -1 to 0, the model has 6 classes, 0 to 5.*ignore_label=-1"),
        (
            np.array([0.0, 1.0]),
            r"class numbers are needed; it holds whole numbers, so write them as such: label.astype\('int64'\)",
        ),
        (np.array([0.5, 1.0]), "class numbers are needed; cast it to int64, or choose another"),
        (np.array([0, 1, 2]), r"class numbers of shape \[2\]"),
        (np.eye(6)[:2], "is one-hot .* label.argmax"),
        (np.eye(6, dtype=np.int64)[:2], "is one-hot .* label.argmax .* binary_accuracy"),
    ],
    ids=["too large", "negative", "whole floats", "not whole", "too many", "one-hot floats", "one-hot"],
)
def test_labels_that_do_not_fit_are_refused(label, message):
    with pytest.raises(InputError, match=message):
        judged("accuracy", SCORES, label)


def test_labels_that_fit_two_axes_are_a_question():
    with pytest.raises(InputError, match=r"classes along axis 1 or 2; say which by class_axis"):
        judged("accuracy", np.zeros((2, 3, 3)), np.zeros((2, 3), np.int64))


def test_labels_of_one_column_are_between_0_and_1():
    with pytest.raises(InputError, match="runs from 0 to 3; each output is a decision between 0 and 1"):
        judged("accuracy", np.zeros((2, 1)), np.array([0, 3]))


def test_outputs_without_classes_are_refused():
    with pytest.raises(InputError, match="no class scores"):
        judged("top5", np.zeros(3), np.zeros(3, np.int64))


def test_unknown_metric_is_refused():
    with pytest.raises(InputError, match="'accurracy': is not one of accuracy, topK, binary_accuracy"):
        named("accurracy")


def test_users_metric_may_judge_every_decision_of_a_sample():
    scores, labels = np.zeros((2, 3, 4)), np.zeros((2, 3), np.int64)
    assert judged(lambda output, label: output.argmax(-1) == label, scores, labels).all()
    assert judged(lambda output, label: label[label != 9] == 0, scores, np.array([[0, 9, 9], [9] * 3]), ignored=9).all()


def ends(output, label):
    raise SystemExit(0)


BROKEN_METRICS = {
    "one that raises": (lambda output, label: output[label.max() + 99], "fails (IndexError: "),
    "one that exits": (ends, "metric 'ends': fails (it ends the process, with status 0); fix the function"),
    "nothing": (lambda output, label: None, "returns object values; return one number per sample"),
    "text": (lambda output, label: "good", "returns <U4 values; return one number per sample"),
    "ragged lists": (lambda output, label: [[1], [1, 2]], "fails (ValueError: "),
    "one number": (lambda output, label: 0.5, "returns 1 numbers for 2 samples; return one per sample"),
    "one too many": (lambda output, label: np.ones(len(label) + 1), "returns 3 numbers for 2 samples"),
    "one for each pair": (lambda output, label: label == label[:, None], "returns 4 numbers for 2 samples"),
    "no number": (lambda output, label: np.ones(0), "returns 0 numbers for 2 samples"),
    "more than adds up": (lambda output, label: np.full(len(label), 1e308), "a number beyond float32; return one"),
    "NaN": (lambda output, label: np.full(len(label), np.nan), "returns NaN, infinity or"),
}


@pytest.mark.parametrize(("metric", "message"), BROKEN_METRICS.values(), ids=BROKEN_METRICS)
def test_users_metric_that_fails_is_named(metric, message):
    with pytest.raises(InputError) as caught:
        judged(metric, SCORES, np.array([0, 1]))
    assert message in str(caught.value)
    assert isinstance(caught.value.__cause__, Exception | SystemExit) == ("fails" in message)
