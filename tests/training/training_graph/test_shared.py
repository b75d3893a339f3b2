"""Weights are quantized once for all parts of a batch, and the gradients of their quantizers computed once, of the parts' sum."""

import numpy as np
import pytest

import onnxqat
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph.shared import shared
from tests.models import model, random

NET = """(float[N,8] x) => (float[N,5] y)
    { a = MatMul (x, w) b = Relu (a) c = MatMul (b, v) d = MatMul (b, v) e = Add (c, d) y = Mul (e, s) }"""
NUMBERS = {"w": random(8, 6), "v": random(6, 5), "s": random(5)}


def labelled(rows):
    return {"x": random(rows, 8, seed=1), "label": np.arange(rows) % 5}


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(NET, **NUMBERS), calibration=[{"x": labelled(8)["x"]}])


@pytest.mark.parametrize("memory", ["auto", "low"])
def test_parts_have_no_gradients_of_quantizers_of_weights(qdq, memory):
    found = shared(Trainer(qdq, threads=2, memory=memory)._steps.graph.training, 2)
    results = [{str(value.name) for value in graph.graph.outputs} for graph in found.behind]
    parts = {str(value.name) for value in found.parts.graph.outputs}
    assert set.union(*results) == {"w_grad", "v_grad", "w_scale_grad", "v_scale_grad"}
    assert len(results) == 2
    assert not set.union(*results) & parts
    assert bool(found.ahead) == (memory == "auto")
    read = {str(value.name) for value in found.parts.graph.inputs}
    assert ("w" in read) == (memory == "low")


def test_gradients_are_those_of_one_part_whatever_the_weights_and_shares(qdq):
    one, three = (Trainer(qdq, threads=threads) for threads in (1, 3))
    for rows in (7, 2, 1, 9):
        _, expected = one.gradients(labelled(rows))
        for _ in range(2):  # what a batch leaves is not added to the next
            _, found = three.gradients(labelled(rows))
            for name, gradient in expected.items():
                np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
