"""Verdicts on numbers alone: no model runs here."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from onnxqat.verification.judge import Evidence, judge, per_sample
from onnxqat.verification.measures import AGREEMENT


def hits(right: int, samples: int) -> np.ndarray:
    return (np.arange(samples) < right).astype(np.float64)


@pytest.mark.parametrize(
    ("metric", "floats", "deployed", "drop"),
    [
        ("accuracy", hits(980, 1000), hits(929, 1000), 5.1),
        ("top5", hits(50, 100), hits(60, 100), -10.0),
        ("psnr", np.full(10, 30.0), np.full(10, 29.5), 0.5),
        ("mse", np.array([1.0, 3.0]), np.array([1.5, 3.5]), 25.0),
        (AGREEMENT, np.ones(200), hits(190, 200), 5.0),
    ],
)
def test_a_drop_is_positive_where_the_deployed_model_is_worse(metric, floats, deployed, drop):
    verdict = judge(metric, floats, deployed)
    assert verdict.drop == pytest.approx(drop)
    assert verdict.float_score == pytest.approx(floats.mean())
    assert verdict.deployed_score == pytest.approx(deployed.mean())
    assert verdict.samples == len(floats)


def test_noise_is_twice_the_standard_error_of_the_differences():
    random = np.random.default_rng(0)
    floats, deployed = random.normal(30, 5, 400), random.normal(29, 5, 400)
    expected = 2 * np.std(floats - deployed, ddof=1) / math.sqrt(400)
    assert judge("psnr", floats, deployed).noise == pytest.approx(expected)
    # what is as hard for the one as for the other is no noise
    assert judge("psnr", floats, floats - 0.5).noise == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("samples", "lost", "exceeded"),
    [(16, 2, False), (1000, 9, False), (1000, 20, True), (100_000, 1100, True), (1, 1, False)],
    ids=["few samples", "allowed", "beyond both", "many samples", "one sample"],
)
def test_only_what_is_beyond_the_bound_and_beyond_chance_counts(samples, lost, exceeded):
    verdict = judge("accuracy", np.ones(samples), hits(samples - lost, samples), max_drop=1.0)
    assert (verdict.exceeded, verdict.fails) == (exceeded, exceeded)
    assert ("likely cause" in verdict.sentence) == exceeded
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_given_bound_is_enforced_and_a_default_is_not():
    before, after = np.ones(1000), hits(900, 1000)
    assert judge("accuracy", before, after, max_drop=1).fails
    assert judge("accuracy", before, after).exceeded
    assert not judge("accuracy", before, after).fails
    assert not judge("accuracy", before, after, max_drop=10.5).exceeded


def test_a_users_metric_has_no_default_bound():
    assert judge("confidence", np.ones(4), np.zeros(4)) is None
    assert judge("confidence", np.ones(4), np.zeros(4), max_drop=0.5).exceeded
    assert judge("accuracy", np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize(("deployed", "exceeded"), [(0.004, False), (0.006, True)])
def test_a_float_model_without_loss_is_judged_by_what_a_constant_answer_loses(deployed, exceeded):
    verdict = judge("mse", np.zeros(50), np.full(50, deployed), Evidence(constant=1.0))
    assert verdict.exceeded == exceeded
    assert np.isfinite(judge("mse", np.zeros(2), np.ones(2)).drop)


EVIDENCE = {
    "the float model itself is at chance": Evidence(suspicion="the float model itself is at chance", trained_score=0.5),
    "judge it with --runtime openvino": Evidence(runtime_hint="judge it with --runtime openvino", trained_score=0.979),
    "may saturate 16 bits; insert with overflow_fix 'pairs'": Evidence(trained_score=0.979, inserted_score=0.93),
    "pairs of products saturate": Evidence(trained_score=0.979, saturates=True),
    "the runtime computes other numbers": Evidence(trained_score=0.979, saturates=False),
    "training has diverged, since right after insertion accuracy is 97.00 %; lower --lr": Evidence(
        trained_score=0.9, inserted_score=0.97
    ),
    "calibration that does not fit": Evidence(trained_score=0.9, inserted_score=0.89),
    "training has recovered a part: before it accuracy is 70.00 %": Evidence(trained_score=0.9, inserted_score=0.7),
    "has diverged (lower --lr) or the calibration data does not fit": Evidence(trained_score=0.9),
}


@pytest.mark.parametrize(("words", "evidence"), EVIDENCE.items(), ids=EVIDENCE)
def test_the_likely_cause_follows_from_what_is_known(words, evidence):
    verdict = judge("accuracy", hits(980, 1000), hits(900, 1000), evidence)
    assert words in verdict.sentence
    assert verdict.sentence.startswith(
        "deployed model: accuracy is 90.00 %, the float model's 98.00 % (8 points worse; "
    )
    assert "\n" not in verdict.sentence


def test_without_labels_other_answers_of_trained_and_deployed_model_point_to_the_runtime():
    verdict = judge(AGREEMENT, np.ones(100), hits(80, 100), Evidence(agreement=0.82))
    assert "compute other numbers" in verdict.cause
    assert "diverged" in replace(verdict, evidence=Evidence(agreement=0.99)).cause


def test_a_sample_of_many_decisions_counts_once():
    assert per_sample(np.array([[1, 0], [1, 1]]), 2).tolist() == [0.5, 1.0]
    assert per_sample(np.array([1, 0]), 2).tolist() == [1.0, 0.0]
    assert per_sample(np.array(1.0), 1).tolist() == [1.0]
    # one of six decisions does not count
    assert per_sample(np.array([1, 1, 0, 0, 0]), 2).tolist() == pytest.approx([2 / 3, 0.0])
