"""Batches cut into parts for several threads, against the same batches in one piece."""

import logging
import re

import numpy as np
import pytest
from onnxscript import opset17 as op
from onnxscript import script
from onnxscript.values import Opset

import onnxqat
from onnxqat.errors import InputError
from onnxqat.training.running.engine import Engine
from onnxqat.training.trainer import Trainer
from tests.models import model, random
from tests.training.test_trainer import BODY, WEIGHTS, batches

OWN = Opset("own", 1)


@script(OWN, default_opset=op)
def weighted(y, label):
    weight = op.Constant(value_floats=[0.2, 1.0, 3.0, 0.5, 2.0])
    return op.SoftmaxCrossEntropyLoss(y, label, weight, ignore_index=-1)


@script(OWN, default_opset=op)
def summed(y, label):
    apart = op.Sub(y, label)
    return op.ReduceSum(op.Mul(apart, apart), keepdims=0)


@script(OWN, default_opset=op)
def rooted(y, label):
    apart = op.Sub(y, label)
    return op.Sqrt(op.ReduceMean(op.Mul(apart, apart), keepdims=0))


def inserted(body, **weights):
    proto = model(body, **weights)
    data = [{i.name: _random(i, 6, seed) for i in proto.graph.input} for seed in range(2)]
    return onnxqat.insert(proto, calibration=data)


def _random(value, rows, seed):
    return random(*(d.dim_value or rows for d in value.type.tensor_type.shape.dim), seed=seed, scale=1.0)


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)])


def labels(kind, rows):
    generator = np.random.default_rng(rows)
    if kind == "values":
        return generator.normal(size=(rows, 5)).astype(np.float32)
    if kind == "sides":
        return generator.integers(0, 2, (rows, 5)).astype(np.float32)
    found = generator.integers(0, 5, rows)
    if kind == "ignored":
        found[: rows // 3 + 1] = -1  # all of the first part of three, and some of the second
    return found


def parts_of(trainer):
    """Numbers of parts that steps have been cut into."""
    return set(trainer._steps.engine._training._lanes)


def check_alike(whole, split, batch):
    one, expected = whole.gradients(batch)
    loss, found = split.gradients(batch)
    assert loss == pytest.approx(one, rel=1e-6)
    apart = sum(np.linalg.norm(found[name] - gradient) ** 2 for name, gradient in expected.items())
    assert apart <= 1e-12 * sum(np.linalg.norm(gradient) ** 2 for gradient in expected.values())
    for name, gradient in expected.items():  # gradients of scales are differences of sums
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


LOSSES = {
    "cross_entropy": ("cross_entropy", "classes", {}),
    "ignored labels": ("cross_entropy", "ignored", {"ignore_label": -1}),
    "ignored sides": ("bce_with_logits", "sides", {"ignore_label": 0}),
    "mse": ("mse", "values", {}),
    "distill": ("distill", None, {}),
    "two losses": ({"cross_entropy": 1.0, "distill": 0.5}, "classes", {}),
    "class weights": (weighted, "ignored", {}),
    "a sum": (summed, "values", {}),
}


@pytest.mark.parametrize("rows", [16, 7], ids=["even", "uneven"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_and_metrics_are_those_of_the_whole_batch(qdq, name, rows):
    loss, kind, settings = LOSSES[name]
    teacher = {"teacher": model(BODY, **{n: a * 1.1 for n, a in WEIGHTS.items()})} if "distill" in str(loss) else {}
    whole, split = (Trainer(qdq, loss=loss, threads=n, **settings, **teacher) for n in (1, 3))
    batch = {"x": batches(1, rows=rows)[0]["x"], **({} if kind is None else {"label": labels(kind, rows)})}
    check_alike(whole, split, batch)
    assert parts_of(split) <= {2, 3}  # where no label of a part counts, it is left out
    assert split.evaluate([batch]) == pytest.approx(whole.evaluate([batch]), rel=1e-6)


def test_batches_smaller_than_the_number_of_threads_have_fewer_parts(qdq):
    whole, split = Trainer(qdq, threads=1), Trainer(qdq, threads=4)
    for rows in (9, 2, 1):
        check_alike(whole, split, batches(1, rows=rows)[0])
    assert parts_of(split) == {4, 2, 1}


TWO = """(float[N,4] x, float[N,4] z, float[4] shift) => (float[N,3] y, float[N,4] s)
{
    a = Add (x, z) s = Add (a, shift) m = MatMul (s, w) r = Relu (m) y = MatMul (r, v)
}"""


def test_several_inputs_and_outputs_of_which_one_is_shared():
    qdq = inserted(TWO, w=random(4, 6), v=random(6, 3))
    teacher = model(TWO, w=random(4, 6, seed=1), v=random(6, 3, seed=1))
    whole, split = (Trainer(qdq, loss="distill", teacher=teacher, threads=n) for n in (1, 2))
    batch = {"x": random(5, 4), "z": random(5, 4, seed=1), "shift": random(4)}
    check_alike(whole, split, batch)
    assert parts_of(split) == {2}


def test_time_first_sequences_are_cut_along_the_samples():
    body = "(float[T,N,8] x) => (float[T,N,4] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }"
    qdq = onnxqat.insert(model(body, w=random(8, 6), v=random(6, 4)), calibration=[{"x": random(5, 6, 8)}])
    teacher = model(body, w=random(8, 6, seed=1), v=random(6, 4, seed=1))
    whole, split = (Trainer(qdq, loss="distill", teacher=teacher, threads=n) for n in (1, 2))
    check_alike(whole, split, {"x": random(5, 6, 8)})
    assert parts_of(split) == {2}


RECURRENT = """(float[N,T,8] x) => (float[N,T,4] y)
{
    t = Transpose <perm=[1,0,2]> (x) h, last = GRU <hidden_size=3> (t, w, r) s = Squeeze (h, one)
    m = MatMul (s, v) y = Transpose <perm=[1,0,2]> (m)
}"""


@pytest.mark.parametrize(("rows", "parts"), [(31, 1), (32, 2)])
def test_recurrent_networks_are_cut_into_parts_of_sixteen_samples_or_more(rows, parts):
    weights = {"w": random(1, 9, 8), "r": random(1, 9, 3), "v": random(3, 4), "one": np.array([1])}
    qdq = onnxqat.insert(model(RECURRENT, **weights), calibration=[{"x": random(6, 5, 8)}])
    whole, split = (Trainer(qdq, loss="mse", threads=n) for n in (1, 2))
    check_alike(whole, split, {"x": random(rows, 5, 8), "label": random(rows, 5, 4)})
    assert parts_of(split) == {parts}


CENTRED = """(float[N,4] x) => (float[N,3] y)
{ m = ReduceMean <axes=[0]> (x) c = Sub (x, m) a = MatMul (c, w) r = Relu (a) y = MatMul (r, v) }"""
FIXED = "(float[6,4] x) => (float[6,3] y) { a = MatMul (x, w) r = Relu (a) y = MatMul (r, v) }"
FREE = FIXED.replace("6,", "N,")


@pytest.mark.parametrize(
    ("body", "loss", "reason"),
    [
        pytest.param(CENTRED, "mse", "Sub .* back to its samples", id="a statistic of the batch"),
        pytest.param(FIXED, "mse", "input 'x' takes batches of a fixed size", id="a fixed batch"),
        pytest.param(FREE, rooted, "Sqrt .* neither", id="a loss that is no mean"),
    ],
)
def test_what_cannot_be_cut_stays_in_one_piece_and_says_so_once(body, loss, reason, caplog):
    qdq = inserted(body, w=random(4, 6), v=random(6, 3))
    batch = {"x": random(6, 4), "label": random(6, 3)}
    with caplog.at_level(logging.INFO, "onnxqat"):
        split = Trainer(qdq, loss=loss, threads=2)
        for _ in range(2):
            check_alike(Trainer(qdq, loss=loss, threads=1), split, batch)
    said = [record.message for record in caplog.records if "in one piece" in record.message]
    assert len(said) == 1
    assert re.search(reason, said[0])
    assert parts_of(split) == {1}


def test_runs_are_repeatable_and_resume_to_the_bit(qdq, tmp_path):
    data = batches(4, rows=7)

    def trained(stop=None):
        trainer = Trainer(qdq, threads=3, optimizer=onnxqat.AdamW(lr=1e-3))
        for batch in data[:stop]:
            trainer.step(batch)
        return trainer

    first, second = trained(), trained(stop=2)
    second.save(tmp_path / "state.onnxqat")
    resumed = Trainer.restore(tmp_path / "state.onnxqat")
    for batch in data[2:]:
        resumed.step(batch)
    for other in (trained(), resumed):
        np.testing.assert_array_equal(first.state.parameters, other.state.parameters)


def test_a_checkpoint_of_another_number_of_threads_goes_on_with_a_warning(qdq, tmp_path, caplog):
    trainer = Trainer(qdq, threads=3)
    trainer.step(batches(1)[0])
    trainer.save(tmp_path / "state.onnxqat")
    Trainer(qdq, threads=2).resume(tmp_path / "state.onnxqat")
    assert "made by 3 threads, this run is of 2 threads; it continues, but results are not bit-identical" in caplog.text


def test_an_error_in_a_part_is_one_line(qdq):
    split = Trainer(qdq, threads=2)
    with pytest.raises(InputError, match="ONNX Runtime cannot run the model on it") as caught:
        split._steps.engine.step({"x": random(4, 2, 8, 8), "onnxqat.label/label": np.zeros(4, np.int64)})
    assert "\n" not in str(caught.value)
    check_alike(Trainer(qdq, threads=1), split, batches(1)[0])


def test_ctrl_c_leaves_nobody_at_work(qdq, monkeypatch):
    from onnxqat.training.running import engine

    split, run, done = Trainer(qdq, threads=2), engine._run, []

    def interrupted(lane, arrays, fetch=()):
        if lane is split._steps.engine._training.of(2)[0]:
            raise KeyboardInterrupt
        done.append(run(lane, arrays, fetch))

    monkeypatch.setattr(engine, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split._steps.engine.step(split._steps.feeds(batches(1)[0]))
    assert len(done) == 1


def test_staged_quantization_is_cut_too(qdq):
    config = onnxqat.Config(weight_start_epoch=1)
    staged = onnxqat.insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)], config=config)
    whole, split = (Trainer(staged, threads=n) for n in (1, 2))
    check_alike(whole, split, batches(1)[0])
    assert parts_of(split) == {2}


def test_gradients_of_a_large_model_are_not_kept_for_each_part(qdq, monkeypatch):
    monkeypatch.setattr("onnxqat.training.running.engine.LARGEST_COPIES", 0)
    split = Trainer(qdq, threads=2)
    check_alike(Trainer(qdq, threads=1), split, batches(1)[0])
    assert parts_of(split) == {1}
    assert isinstance(split._steps.engine, Engine)
