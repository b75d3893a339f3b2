"""The checker itself: what it must catch, what it must not accuse."""

import numpy as np
import pytest

from onnxqat.training.gradients import gradients
from tests.models import model, random
from tools.gradient_check.check import check_gradients

NET = model(
    """(float[4,5] x, float[5,3] w, float[3] b) => (float[4,3] y)
    {
        m = MatMul (x, w)
        a = Add (m, b)
        y = Relu (a)
    }"""
)
FEEDS = {"x": random(4, 5), "w": random(5, 3), "b": random(3)}


def changed(change):
    def compute(proto, feeds, wrt, cotangents):
        outputs, found = gradients(proto, feeds, wrt, cotangents)
        return outputs, {name: change(name, value, feeds) for name, value in found.items()}

    return compute


def scaled(factor):
    return changed(lambda name, gradient, feeds: gradient * np.float32(factor))


def without_mask(proto, feeds, wrt, cotangents):
    """The gradient of the net without its Relu."""
    linear = model(
        """(float[4,5] x, float[5,3] w, float[3] b) => (float[4,3] y)
        {
            m = MatMul (x, w)
            y = Add (m, b)
        }"""
    )
    return gradients(linear, feeds, wrt, cotangents)


def one_element_wrong(name, gradient, feeds):
    wrong = gradient.copy()
    wrong.flat[0] += 0.01 * np.abs(gradient).sum()
    return wrong


def zero_where_negative(name, gradient, feeds):
    return np.where(feeds[name] < 0, np.float32(0), gradient)


def test_a_right_gradient_is_correct():
    assert check_gradients(NET, FEEDS).outcome == "correct"


@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0])
def test_a_gradient_that_is_off_by_a_factor_is_wrong(factor):
    assert check_gradients(NET, FEEDS, compute=scaled(factor)).outcome == "wrong"


@pytest.mark.parametrize(
    "compute",
    [without_mask, changed(one_element_wrong), changed(zero_where_negative)],
    ids=["no mask", "one element off", "a part missing"],
)
def test_a_gradient_that_is_wrong_in_places_is_wrong(compute):
    assert check_gradients(NET, FEEDS, compute=compute).outcome == "wrong"


@pytest.mark.parametrize(
    "change",
    [lambda n, g, f: g.astype(np.float64), lambda n, g, f: g[:1], lambda n, g, f: np.full_like(g, np.nan)],
    ids=["type", "shape", "not a number"],
)
def test_a_gradient_of_another_form_is_wrong(change):
    assert check_gradients(NET, FEEDS, compute=changed(change)).outcome == "wrong"


def test_a_point_on_a_kink_is_left():
    on_kinks = {name: np.zeros_like(value) for name, value in FEEDS.items()}
    assert check_gradients(NET, on_kinks).outcome == "correct"


def test_inputs_that_are_not_finite_are_replaced():
    with_nan = FEEDS | {"b": np.array([np.nan, np.inf, 0.3], np.float32)}
    assert check_gradients(NET, with_nan).outcome == "correct"


def test_a_function_that_is_finite_nowhere_is_unchecked():
    nowhere = model("(float[3] x) => (float[3] y) { a = Exp (x)  b = Neg (a)  y = Log (b) }")
    assert check_gradients(nowhere, {"x": random(3)}).outcome == "unchecked"


def test_half_precision_is_checked_more_coarsely():
    half = model("(float16[6] x) => (float16[6] y) { y = Neg (x) }")
    feeds = {"x": random(6).astype(np.float16)}
    assert check_gradients(half, feeds).outcome == "correct"
    wrong = changed(lambda n, g, f: (1.1 * g).astype(np.float16))
    assert check_gradients(half, feeds, compute=wrong).outcome == "wrong"


def test_a_refusal_is_reported_with_its_reason():
    refused = model("(float[2,2] x) => (float[n] y) { y = Unique (x) }")
    verdict = check_gradients(refused, {"x": random(2, 2)})
    assert verdict.outcome == "refused"
    assert "Unique" in verdict.reason


def test_outputs_that_no_evaluator_reproduces_leave_a_case_unchecked():
    verdict = check_gradients(NET, FEEDS, {"y": np.full((4, 3), 77, np.float32)})
    assert verdict.outcome == "unchecked"


def test_a_model_without_floats_has_none():
    integers = model("(int64[2] x) => (int64[2] y) { y = Neg (x) }")
    assert check_gradients(integers, {"x": np.array([1, 2])}).outcome == "none"
