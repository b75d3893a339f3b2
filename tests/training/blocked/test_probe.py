"""The block of this processor, and who uses it."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from onnxqat import Trainer, insert
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.ops import BLOCKED
from onnxqat.training.blocked import probe
from tests.models import model, optimized, random

NET = "(float[N,3,12,12] x) => (float[N,32,12,12] y) { a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v) }"  # noqa: E501
FLOAT = model(NET, w=random(32, 3, 3, 3), v=random(32, 32, 3, 3))
BATCH = {"x": random(2, 3, 12, 12, scale=1.0), "label": random(2, 32, 12, 12, seed=1)}


@pytest.fixture
def fresh():
    """Forgets the block that this process has found, before and after."""
    probe.block.cache_clear()
    yield
    probe.block.cache_clear()


def uses_blocks(trainer: Trainer) -> bool:
    return BLOCKED in trainer._steps.graph.training.opset_imports


def test_block_is_the_one_that_the_optimizer_uses():
    blocked = {node.input[1] for node in optimized(FLOAT).node if node.domain == BLOCKED and node.op_type == "Conv"}
    assert bool(probe.block()) == bool(blocked)
    assert probe.block() in (0, 8, 16)


@pytest.mark.parametrize("wrong", [8, 16])
def test_a_block_that_computes_something_else_is_not_used(fresh, monkeypatch, wrong):
    right = probe.block()
    probe.block.cache_clear()
    monkeypatch.setattr(probe, "_optimizers_choice", lambda: wrong)
    assert probe.block() in (0, right)


def plain_only(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def refused(model: onnx.ModelProto) -> onnx.ModelProto:
    raise UnsupportedModelError("model: ONNX Runtime cannot load it: no such kernel")


@pytest.mark.parametrize("answer", [plain_only, refused])
def test_training_falls_back_on_a_processor_without_blocked_kernels(fresh, monkeypatch, caplog, answer):
    qdq = insert(FLOAT, [BATCH["x"]])
    monkeypatch.setattr(probe, "optimized", answer)
    with caplog.at_level(logging.INFO):
        trainers = [Trainer(qdq, loss="mse", threads=1) for _ in range(2)]
    assert not uses_blocks(trainers[0])
    assert np.isfinite(trainers[1].step(BATCH))
    assert sum("plain layout" in record.message for record in caplog.records) == 1


@pytest.mark.skipif(not probe.block(), reason="this processor has no blocked convolutions")
def test_plain_layout_is_kept_where_it_is_asked_for():
    qdq = insert(FLOAT, [BATCH["x"]])
    automatic, plain = (Trainer(qdq, loss="mse", threads=1, layout=layout) for layout in ("auto", "plain"))
    assert uses_blocks(automatic)
    assert not uses_blocks(plain)
    assert automatic.step(BATCH) == pytest.approx(plain.step(BATCH), rel=1e-5)


def test_a_restored_run_has_the_layout_of_its_checkpoint(tmp_path, caplog):
    trainer = Trainer(insert(FLOAT, [BATCH["x"]]), loss="mse", threads=1, layout="plain")
    trainer.step(BATCH)
    trainer.save(tmp_path / "run.ckpt")
    restored = Trainer.restore(tmp_path / "run.ckpt")
    assert not uses_blocks(restored)
    assert "bit-identical" not in caplog.text
    assert restored.step(BATCH) == trainer.step(BATCH)


@pytest.mark.skipif(not probe.block(), reason="this processor has no blocked convolutions")
def test_resuming_in_another_layout_says_that_bits_differ(tmp_path, caplog):
    qdq = insert(FLOAT, [BATCH["x"]])
    trainer = Trainer(qdq, loss="mse", threads=1)
    trainer.save(tmp_path / "run.ckpt")
    Trainer(qdq, loss="mse", threads=1, layout="plain").resume(tmp_path / "run.ckpt")
    assert f"1 threads with blocks of {probe.block()} channels, this run is of 1 threads; " in caplog.text


def test_a_layout_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"layout is 'nhwc'; it must be one of auto, plain"):
        Trainer(FLOAT, layout="nhwc")


@pytest.mark.skipif(not probe.block(), reason="this processor has no blocked convolutions")
def test_threads_take_parts_of_a_batch_in_the_blocked_layout_too(caplog):
    qdq = insert(FLOAT, [BATCH["x"]])
    with caplog.at_level(logging.INFO):
        one, two = (Trainer(qdq, loss="mse", threads=threads) for threads in (1, 2))
    assert uses_blocks(two)
    assert "stay in one piece" not in caplog.text
    (loss, expected), (other, found) = (trainer.gradients(BATCH) for trainer in (one, two))
    assert other == pytest.approx(loss, rel=1e-6)
    for name in ("w", "v"):
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-6 * np.linalg.norm(expected[name])
