import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.biases import integer_biases
from onnxqat.insertion import insert
from onnxqat.training.optimize.optimizers import SGD
from onnxqat.training.trainer import Trainer
from tests.models import array, batches, model, outputs, random

NET = "(float[N,6] x) => (float[N,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
WEIGHTS = {"w": random(6, 5), "b": random(5), "v": random(5, 4), "c": random(4)}


def coarse(**settings) -> onnx.ModelProto:
    """A Q/DQ model of 3 bits, whose biases lie far off their grid."""
    proto = model(NET, **WEIGHTS)
    return insert(proto, batches(proto), Config(weight_bits=3, activation_bits=3, first_last_bits=None, **settings))


def labelled(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    return [{**batch, "label": random(4, 4, seed=9)} for batch in batches(proto)]


def test_training_computes_with_biases_on_the_grid_of_the_deployed_model():
    qdq = coarse()
    trainer = Trainer(qdq, "mse")
    (batch, *_) = labelled(qdq)
    loss, _ = trainer.gradients(batch)
    (deployed,) = outputs(fold(qdq), {"x": batch["x"]})
    (inserted,) = outputs(qdq, {"x": batch["x"]})
    assert loss == pytest.approx(np.mean((deployed - batch["label"]) ** 2), rel=1e-5)
    assert loss != pytest.approx(np.mean((inserted - batch["label"]) ** 2), rel=1e-3)


def test_folding_a_trained_model_moves_no_bias():
    trainer = Trainer(coarse(), "mse", SGD(lr=1e-2))
    for batch in labelled(trainer.model()):
        trainer.step(batch)
    biases = integer_biases(io.load(trainer.model()))
    assert len(biases) == 2
    for bias in biases:
        codes = bias.array / bias.step
        assert np.allclose(codes, np.rint(codes), atol=1e-4)


def test_gradient_passes_straight_through_the_rounding():
    qdq = coarse()
    (batch, *_) = labelled(qdq)
    _, gradients = Trainer(qdq, "mse").gradients(batch)
    (deployed,) = outputs(fold(qdq), {"x": batch["x"]})
    assert gradients["c"] == pytest.approx(
        (2 * (deployed - batch["label"]) / batch["label"].size).sum(axis=0), rel=1e-4
    )


def test_steps_smaller_than_the_grid_add_up():
    qdq = coarse()
    (batch, *_) = labelled(qdq)
    trainer = Trainer(qdq, "mse", SGD(lr=1e-5, momentum=0.0), freeze=["w", "v", ".*_scale", "b"])
    on_grid = array(trainer.model(), "c")
    trainer.step(batch)
    assert np.array_equal(array(trainer.model(), "c"), on_grid)
    (grid,) = [bias.step for bias in integer_biases(io.load(qdq)) if bias.value.name == "c"]
    slope = trainer.gradients(batch)[1]["c"]
    for _ in range(int(1e5 * (grid / np.abs(slope)).min()) + 1):
        trainer.step(batch)
    assert not np.array_equal(array(trainer.model(), "c"), on_grid)


def test_a_target_with_float_biases_keeps_them():
    trainer = Trainer(coarse(target="openvino"), "mse")
    assert np.array_equal(array(trainer.model(), "c"), WEIGHTS["c"])


def test_a_frozen_bias_keeps_its_value_and_its_scales_train():
    qdq = coarse()
    trainer = Trainer(qdq, "mse", SGD(lr=1e-2), freeze=["c"])
    for batch in labelled(qdq):
        trainer.step(batch)
    trained = trainer.model()
    assert np.array_equal(array(trained, "c"), WEIGHTS["c"])
    assert not np.array_equal(array(trained, "v_scale"), array(qdq, "v_scale"))
