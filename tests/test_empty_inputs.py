"""Inputs without elements that a model takes by design: a decoder's cache before the first token."""

import numpy as np
import pytest
import torch

import onnxqat
import onnxqat.torch
from onnxqat.data.batch import Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model, outputs, random

#: Attention of new tokens over the cache and themselves, which the cache then holds too.
DECODER = model(
    """(float[N,S,8] x, float[N,P,8] past) => (float[N,S,8] y, float[N,T,8] present)
    { q = MatMul(x, wq) k = MatMul(x, wk) present = Concat<axis=1>(past, k) t = Transpose<perm=[0,2,1]>(present)
      s = MatMul(q, t) p = Softmax<axis=-1>(s) c = MatMul(p, present) y = MatMul(c, wo) }""",
    wq=random(8, 8, seed=1),
    wk=random(8, 8, seed=2),
    wo=random(8, 8, seed=3),
)
PROMPT = {"x": random(2, 5, 8, scale=1.0), "past": np.zeros((2, 0, 8), np.float32)}
LATER = {"x": random(2, 1, 8, seed=4, scale=1.0), "past": outputs(DECODER, PROMPT)[1]}


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(DECODER, [PROMPT, LATER])


def test_ranges_come_from_the_first_step_and_the_later_ones(qdq):
    for batch in (PROMPT, LATER):
        expected, found = outputs(DECODER, batch)[0], outputs(qdq, batch)[0]
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_the_first_step_trains_as_any_other(qdq):
    trainer = onnxqat.Trainer(qdq, loss="distill", optimizer=onnxqat.AdamW(lr=1e-4))
    before = trainer.evaluate([PROMPT])["loss"]
    trainer.fit([PROMPT, LATER], epochs=10)
    assert trainer.evaluate([PROMPT])["loss"] < before


def test_the_first_step_is_verified(qdq):
    report = onnxqat.verify(qdq, onnxqat.fold(qdq), [PROMPT, LATER])
    assert report.samples == 4


def test_the_first_step_has_gradients_in_pytorch(qdq):
    module = onnxqat.torch.as_module(qdq)
    y, present = module(*(torch.from_numpy(PROMPT[name]) for name in ("x", "past")))
    (y.square().sum() + present.sum()).backward()
    np.testing.assert_allclose(y.detach().numpy(), outputs(qdq, PROMPT)[0], rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(parameter.grad.numpy()).all() for parameter in module.parameters())


def test_a_value_that_is_empty_in_all_batches_has_no_range():
    reads_past = model(
        "(float[N,8] x, float[N,P,8] past) => (float[N,8] y, float[N,P,4] z) { y = MatMul(x, w) z = MatMul(past, v) }",
        w=random(8, 8),
        v=random(8, 4),
    )
    batch = {"x": random(2, 8), "past": np.zeros((2, 0, 8), np.float32)}
    with pytest.raises(InputError, match="'past' was empty in all batches"):
        onnxqat.insert(reads_past, [batch])


@pytest.mark.parametrize(
    "batch",
    [
        {"x": np.zeros((0, 5, 8), np.float32), "past": np.zeros((0, 3, 8), np.float32)},
        {"x": np.zeros((2, 0, 8), np.float32), "past": np.zeros((2, 0, 8), np.float32)},
    ],
    ids=["no rows", "nothing at all"],
)
def test_a_batch_without_samples_is_refused(batch):
    with pytest.raises(InputError, match="drop empty batches"):
        check_batch(batch, Signature.of(io.load(DECODER)))


def test_an_empty_input_is_refused_where_the_runtime_would_crash():
    last = model(
        "(float[N,8] x, float[N,P] past) => (float[N,8] y, float[N,1] best, int64[N,1] index) "
        "<int64[1] one = {1}> { y = Relu(x) best, index = TopK(past, one) }"
    )
    batch = {"x": random(2, 8), "past": np.zeros((2, 0), np.float32)}
    with pytest.raises(InputError, match=r"'past': is empty.*TopK"):
        check_batch(batch, Signature.of(io.load(last)))


def test_an_empty_input_joined_with_others_is_let_through():
    joined = model(
        "(float[N,8] x, float[N,P] past) => (float[N,1] best, int64[N,1] index) "
        "<int64[1] one = {1}> { all = Concat<axis=1>(past, x) best, index = TopK(all, one) }"
    )
    batch = {"x": random(2, 8), "past": np.zeros((2, 0), np.float32)}
    assert check_batch(batch, Signature.of(io.load(joined)))["past"].shape == (2, 0)
