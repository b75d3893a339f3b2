"""Training graphs in operators that every onnxruntime has: the same gradients, and what cannot be had is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.runtime import engines
from onnxqat.training.training_graph.build import load_qdq, training_graph
from tests.models import model, random

_CASES = {
    "convolutions": (
        "(float[N,3,H,W] x) => (float[N,5] y) {"
        " a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w, b) r = Relu (a)"
        " e = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r, d) s = Add (e, r)"
        " q = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s)"
        " g = GlobalAveragePool (q) f = Flatten (g) y = Gemm (f, v, c) }",
        {"w": (8, 3, 3, 3), "b": (8,), "d": (8, 1, 3, 3), "v": (8, 5), "c": (5,)},
        {"x": random(4, 3, 10, 9, scale=1.0)},
    ),
    "attention": (
        "(int64[N,S] t) => (float[N,5] y) <int64[4] heads = {0, 0, 2, 4}, int64[3] rows = {0, 0, 8}> {"
        " x = Gather (e, t) xq = MatMul (x, q) rq = Reshape (xq, heads) tq = Transpose <perm=[0,2,1,3]> (rq)"
        " xk = MatMul (x, k) rk = Reshape (xk, heads) tk = Transpose <perm=[0,2,3,1]> (rk)"
        " m = MatMul (tq, tk) a = Softmax (m) c = MatMul (a, tq)"
        " u = Transpose <perm=[0,2,1,3]> (c) o = Reshape (u, rows) r = Add (o, x)"
        " n = LayerNormalization (r, s, b) z = ReduceMean <axes=[1], keepdims=0> (n) y = Gemm (z, v) }",
        {"e": (7, 8), "q": (8, 8), "k": (8, 8), "s": (8,), "b": (8,), "v": (8, 5)},
        {"t": np.random.default_rng(0).integers(0, 7, (4, 5))},
    ),
    "LSTM": (
        "(float[T,N,6] x) => (float[N,5] y) <int64[1] zero = {0}> {"
        " a, h = LSTM <hidden_size=4> (x, w, r) s = Squeeze (h, zero) y = Gemm (s, v) }",
        {"w": (1, 16, 6), "r": (1, 16, 4), "v": (4, 5)},
        {"x": random(7, 4, 6, scale=1.0)},
    ),
}


def case(name):
    """A Q/DQ model and a batch."""
    text, weights, feeds = _CASES[name]
    arrays = {name: random(*shape, scale=0.5) for name, shape in weights.items()}
    return onnxqat.insert(model(text, **arrays), [feeds]), feeds | {"label": np.array([0, 3, 1, 4])}


@pytest.mark.parametrize("name", _CASES)
def test_engines_agree(name):
    qdq, batch = case(name)
    (loss, expected), (same, found) = (
        onnxqat.Trainer(qdq, engine=engine, threads=1).gradients(batch) for engine in ("training", "runtime")
    )
    assert same == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        assert np.linalg.norm(found[name] - gradient) <= 1e-5 * np.linalg.norm(gradient) + 1e-7, name


@pytest.mark.parametrize("name", _CASES)
def test_a_graph_for_any_runtime_has_no_operator_of_the_training_build(name):
    graph = training_graph(load_qdq(case(name)[0]), "cross_entropy", engine="runtime").training.graph
    assert {(node.domain, node.op_type) for node in graph.all_nodes() if node.domain} <= {
        ("com.microsoft", "FusedMatMul")
    }


@pytest.fixture
def stock(monkeypatch):
    """An onnxruntime without training kernels."""
    monkeypatch.setattr(engines, "_has_training_kernels", lambda: False)


@pytest.mark.usefixtures("stock")
def test_auto_is_whatever_is_installed():
    assert training_graph(load_qdq(case("LSTM")[0]), "cross_entropy").engine == "runtime"


@pytest.mark.usefixtures("stock")
def test_training_kernels_that_are_not_installed_are_refused_with_the_remedy():
    with pytest.raises(
        InputError, match=r"engine 'training': onnxruntime \S+ lacks its kernels; install .*engine runtime"
    ):
        engines.chosen("training")


def test_an_unknown_engine_is_refused():
    with pytest.raises(InputError, match="engine 'cuda': not known; use auto, training, runtime"):
        engines.chosen("cuda")


def test_a_checkpoint_of_another_engine_is_resumed_with_a_warning(tmp_path, caplog):
    qdq, batch = case("LSTM")
    trainer = onnxqat.Trainer(qdq, engine="runtime", threads=1)
    trainer.step(batch)
    trainer.save(tmp_path / "at.ckpt")
    assert onnxqat.Trainer.restore(tmp_path / "at.ckpt").step(batch) == trainer.step(batch)
    other = onnxqat.Trainer(qdq, engine="training", threads=1)
    with caplog.at_level(logging.WARNING, "onnxqat"):
        other.resume(tmp_path / "at.ckpt")
    assert "was made by 1 threads of the engine runtime, this run is of 1 threads; it continues" in caplog.text


@pytest.mark.parametrize("how", [{"engine": "training"}, {"threads": 2}], ids=["engine", "threads"])
def test_a_checkpoint_of_another_engine_or_number_of_threads_is_refused_where_bits_count(how, tmp_path):
    qdq, batch = case("LSTM")
    trainer = onnxqat.Trainer(qdq, engine="runtime", threads=1)
    trainer.step(batch)
    trainer.save(tmp_path / "at.ckpt")
    other = onnxqat.Trainer(qdq, **{"engine": "runtime", "threads": 1, **how})
    with pytest.raises(
        InputError, match=r"of the engine runtime, this run is of .* would not be bit-identical; use the same"
    ):
        other.resume(tmp_path / "at.ckpt", strict=True)
    assert not other.has_begun
    with pytest.raises(InputError, match="would not be bit-identical"):
        onnxqat.Trainer.restore(tmp_path / "at.ckpt", strict=True, **how)
    assert onnxqat.Trainer.restore(tmp_path / "at.ckpt", strict=True).step(batch) == trainer.step(batch)


def test_gradients_of_a_model_are_computed_by_the_engine_asked_for():
    text = "(float[4,3] x) => (float[4,2] y) { h = MatMul (x, w) y = Softmax (h) }"
    proto, feeds = model(text, w=random(3, 2)), {"x": random(4, 3)}
    found = [onnxqat.gradients(proto, feeds, ["x"], engine=engine)[1]["x"] for engine in ("training", "runtime")]
    np.testing.assert_allclose(*found, atol=1e-6)
