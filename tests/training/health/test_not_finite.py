"""Numbers that are not finite: those that quantization makes are trained through, others are named where they arise first."""

import numpy as np
import pytest

import onnxqat
from onnxqat.errors import TrainingError
from onnxqat.training.trainer import Trainer
from tests.models import model, random

SPECTROGRAM = """(float[N,1,16] x) => (float[N,3] y) {{
    re = Conv<pads=[1,1]> (x, real)
    im = Conv<pads=[1,1]> (x, imaginary)
    squared = Mul (re, re)
    other = Mul (im, im)
    power = Add (squared, other)
    magnitude = {}
    f = Flatten (magnitude)
    y = Gemm (f, w, b)
}}"""
WEIGHTS = {
    "real": random(4, 1, 3),
    "imaginary": random(4, 1, 3, seed=1),
    "w": random(64, 3),
    "b": random(3),
    "half": np.float32(0.5),
    "floor": np.float32(-12),
    "small": np.float32(1e-20),
}
SOUND = random(8, 1, 16, scale=1.0)
SILENCE = SOUND * np.array([1, 1, 1, 1, 0, 0, 1e-4, 1], np.float32).reshape(-1, 1, 1)
LABEL = random(8, 3)


def quantized(body, weights, config=None):
    proto = model(body, **{name: array for name, array in weights.items() if name in body})
    return onnxqat.insert(proto, [{"x": SOUND}], config)


@pytest.mark.parametrize(
    "magnitude",
    [
        "Sqrt (power)",
        "Pow (power, half)",
        "Log (power)",
        "ReduceL2<axes=[0], keepdims=1> (power) d = Expand (magnitude, shape)",
        "Sqrt (power) l = Log (magnitude)",
        "Reciprocal (power)",
    ],
    ids=lambda text: text.split()[0].split("<")[0] + " Log" * ("l =" in text),
)
def test_silence_is_trained_through(magnitude):
    body = SPECTROGRAM.format(magnitude.split(" d =")[0])
    if "ReduceL2" in magnitude:
        body = body.replace("f = Flatten (magnitude)", "all = Add (magnitude, power) f = Flatten (all)")
    if "l =" in magnitude:
        body = body.replace("Flatten (magnitude)", "Flatten (l)")
    trainer = Trainer(quantized(body, WEIGHTS), "mse", onnxqat.AdamW(lr=1e-4))
    losses = [trainer.step({"x": SILENCE, "label": LABEL}) for _ in range(3)]
    assert np.isfinite(losses).all()
    assert np.isfinite(trainer.state.parameters).all()


def failure(qdq, *batches, **arguments):
    """Returns the message about the last of the batches; the steps on the others are good."""
    trainer = Trainer(qdq, "mse", **arguments)
    *good, bad = [{"x": SOUND, "label": LABEL, **batch} for batch in batches]
    for batch in good:
        trainer.step(batch)
    with pytest.raises(TrainingError) as caught:
        trainer.step(bad)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_logarithm_of_zero_is_named_with_advice_that_fits():
    body = """(float[N,4] x) => (float[N,3] y) {
        h = MatMul (x, w)
        r = Relu (h)
        g = Add (r, r)
        y = Log (g)
    }"""
    x = np.abs(random(8, 4, scale=1.0)) + 0.1
    proto = model(body, w=np.abs(random(4, 3)) + 0.1)
    trainer = Trainer(onnxqat.insert(proto, [{"x": x}]), "mse", freeze=["w"])
    with pytest.raises(TrainingError, match=r"'y', the result of Log .*is not finite.*exact zero.*`ignore`") as caught:
        trainer.step({"x": np.zeros_like(x), "label": LABEL})
    assert "learning rate" not in str(caught.value)


def test_zero_by_zero_is_named_although_a_quantizer_hides_it():
    message = failure(quantized(SPECTROGRAM.format("Div (re, im)"), WEIGHTS), {"x": SILENCE})
    assert "'magnitude', the result of Div" in message
    assert "learning rate" not in message


HIDDEN = """(float[N,1,16] x) => (float[N,3] y) {
    a = Conv<pads=[1,1]> (x, real)
    t = Tanh (a)
    f = Flatten (t)
    y = Gemm (f, w, b)
}"""


def test_the_node_through_which_a_gradient_overflows_first_is_named():
    tail = "h = Gemm (f, w, b) s = Sigmoid (h) tiny = Mul (s, down) more = Mul (tiny, up) y = Mul (more, up)"
    body = HIDDEN.replace("y = Gemm (f, w, b)", tail)
    weights = {**WEIGHTS, "down": np.float32(1e-36), "up": np.float32(1e19)}
    message = failure(quantized(body, weights, onnxqat.Config(ignore=[{"type": "Mul"}])), {"label": LABEL * 1e3})
    assert "the gradient of 'tiny' through Mul 'Mul_1', is not finite" in message
    assert "no step has changed the model yet" in message


def test_labels_that_are_too_large_are_named():
    message = failure(quantized(HIDDEN, WEIGHTS), {"label": LABEL * 1e30})
    assert "the loss is not finite" in message
    assert "'label' holds numbers beyond 1e+18: check data and labels" in message


def test_weights_that_training_has_blown_up_are_blamed_on_the_rate():
    message = failure(quantized(HIDDEN, WEIGHTS), {}, {}, optimizer=onnxqat.AdamW(lr=1e25))
    assert message.startswith("step 2: ")
    assert "lower the learning rate" in message
