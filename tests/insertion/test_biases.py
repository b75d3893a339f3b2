"""Biases that would leave int32: the scale of the weight is raised until they and the products fit."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.biases import integer_biases
from onnxqat.insertion import insert
from onnxqat.torch import as_module, to_model
from onnxqat.training.optimize.optimizers import SGD
from onnxqat.training.trainer import Trainer
from tests.models import array, batches, decibels, model, outputs, random

CONV = "(float[N,3,6,6] x) => (float[N,4,6,6] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }"
GEMM = "(float[N,8] x) => (float[N,4] y) { y = Gemm(x, w, b) }"
MATMUL = "(float[N,2,8] x) => (float[N,2,4] y) { m = MatMul(x, w) y = Add(m, b) }"
SHAPES = {CONV: (4, 3, 3, 3), GEMM: (8, 4), MATMUL: (8, 4)}


def scaled(proto: onnx.ModelProto, factor: float) -> list[dict[str, np.ndarray]]:
    return [{name: value * np.float32(factor) for name, value in batch.items()} for batch in batches(proto, rows=24)]


@pytest.mark.parametrize("text", SHAPES, ids=["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@given(
    weight=st.integers(-30, 2),
    data=st.integers(-20, 2),
    bias=st.integers(-20, 6),
    dead=st.booleans(),
    correction=st.sampled_from(["none", "affine"]),
)
@settings(max_examples=12)
def test_whatever_insert_accepts_fold_deploys_with_the_same_answers(
    text, granularity, weight, data, bias, dead, correction
):
    w = random(*SHAPES[text]) * np.float32(10.0**weight)
    if dead:
        w[..., 0] = 0
        w[0] = 0
    proto = model(text, w=w, b=random(4, seed=1) * np.float32(10.0**bias))
    inputs = scaled(proto, 10.0**data)
    qdq = insert(proto, inputs, Config(weight_granularity=granularity, output_correction=correction))
    (expected,), (found,) = outputs(proto, inputs[0]), outputs(fold(qdq), inputs[0])
    assert decibels(expected, found) > 25


def test_codes_leave_room_for_the_products():
    proto = model(GEMM.replace("8", "4000"), w=random(4000, 4, scale=1e-6), b=np.array([5, -5, 0, 1e-3], np.float32))
    (bias,) = integer_biases(io.load(insert(proto, batches(proto))))
    largest = np.abs(bias.codes).max() + 4000 * 255 * 127
    assert 2**29 < largest < 2**30.1


def test_scale_of_a_weight_is_left_as_it_is_where_the_bias_fits():
    proto = model(GEMM, w=random(8, 4), b=random(4, seed=1))
    without = model(GEMM.replace(", b)", ")"), w=random(8, 4))
    inserted, expected = (array(insert(proto, batches(proto)), "w_scale") for proto in (proto, without))
    np.testing.assert_array_equal(inserted, expected)


@pytest.mark.parametrize("text", SHAPES, ids=["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("freeze", [[], ["w_scale"]], ids=["all", "scale frozen"])
def test_training_raises_the_scale_of_a_weight_that_its_bias_outgrows(text, granularity, freeze):
    proto = model(text, w=random(*SHAPES[text]) * np.float32(1e-6), b=random(4, seed=1))
    data = batches(proto)
    labelled = [{**batch, "label": 50 * outputs(proto, batch)[0]} for batch in data]
    qdq = insert(proto, data, Config(weight_granularity=granularity))
    trainer = Trainer(qdq, "mse", SGD(lr=0.5), freeze=freeze)
    for _ in range(8):
        for batch in labelled:
            trainer.step(batch)
    trained = trainer.model()
    assert np.abs(array(trained, "b")).max() > 4 * np.abs(array(qdq, "b")).max()
    (bias,) = integer_biases(io.load(trained))
    assert np.abs(bias.codes).max() < 2**30.1
    (expected,), (found,) = outputs(trained, data[0]), outputs(fold(trained), data[0])
    assert decibels(expected, found) > 40


def test_module_raises_the_scale_of_a_weight_that_its_bias_outgrows():
    torch = pytest.importorskip("torch")
    proto = model(GEMM, w=random(8, 4) * np.float32(1e-6), b=random(4, seed=1))
    module = as_module(insert(proto, batches(proto)))
    with torch.no_grad():
        dict(module.named_parameters())["b"].mul_(100)
    fold(to_model(module))
