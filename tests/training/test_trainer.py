import json
import logging
import re
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.errors import InputError, TrainingError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from onnxqat.search.reconstruction.reconstruct import reconstruct
from onnxqat.training.callbacks.ready_made import Callback, EarlyStopping, JsonLines
from onnxqat.training.optimize.optimizers import SGD, AdamW
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.trainer import Trainer
from tests.models import model, quantized_by_onnxruntime, random

BODY = """(float[N,3,8,8] x) => (float[N,5] y)
{
    a = Conv <pads=[1,1,1,1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <pads=[1,1,1,1]> (b, w2, b2)
    d = Add (b, c)
    e = Relu (d)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    y = Gemm <transB=1> (g, w3, b3)
}"""
WEIGHTS = {
    "w1": random(6, 3, 3, 3),
    "b1": random(6),
    "w2": random(6, 6, 3, 3),
    "b2": random(6),
    "w3": random(5, 6),
    "b3": random(5),
}


def batches(count=6, rows=16, seed=0):
    """Images whose class is the strongest of five fixed patterns."""
    generator = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((5, 3, 8, 8))
    found = []
    for _ in range(count):
        label = generator.integers(0, 5, rows)
        x = patterns[label] + 0.3 * generator.standard_normal((rows, 3, 8, 8))
        found.append({"x": x.astype(np.float32), "label": label})
    return found


def cross_entropy(logits, label):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(label)), label]))


@pytest.fixture(scope="module")
def qdq():
    return insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)], config=Config())


def scales_of(proto):
    return {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}


def test_training_lowers_the_loss(qdq):
    trainer = Trainer(qdq, optimizer=AdamW(lr=3e-3))
    before = trainer.evaluate(batches())
    trainer.fit(batches(), epochs=10)
    after = trainer.evaluate(batches())
    assert after["loss"] < 0.7 * before["loss"]
    assert after["accuracy"] > before["accuracy"]


def test_the_trained_model_is_a_plain_one_that_gives_the_losses_reported(qdq):
    trainer = Trainer(qdq, optimizer=AdamW(lr=3e-3))
    trainer.fit(batches(), epochs=2)
    trained = trainer.model()
    onnx.checker.check_model(trained, full_check=True)
    assert {o.domain for o in trained.opset_import} == {""}
    batch = batches(1)[0]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    logits = ort.InferenceSession(trained.SerializeToString(), options).run(None, {"x": batch["x"]})[0]
    expected = cross_entropy(logits, batch["label"])
    assert trainer.evaluate([batch])["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("steps", "accumulate", "epochs"), [(2, 1, 1), (3, 1, 1), (4, 1, 2), (3, 2, 2)])
def test_a_run_of_so_many_steps_ends_after_them_in_an_epoch_that_is_judged(qdq, steps, accumulate, epochs, caplog):
    seen = []

    class Watch(Callback):
        def on_step_end(self, trainer, loss):
            seen.append(trainer.schedule.position.progress)

        def on_epoch_end(self, trainer, metrics):
            seen.append("accuracy" if "validation_accuracy" in metrics else "none")

    trainer = Trainer(qdq, schedule=Cosine(), accumulate=accumulate)
    with caplog.at_level(logging.INFO):
        trainer.fit(batches(3), steps=steps, validation=batches(1), callbacks=[Watch()])
    assert (trainer.schedule.position.step, trainer.schedule.position.epoch) == (steps, epochs)
    assert trainer.schedule.factor == 0
    assert seen.count("accuracy") == epochs
    assert seen[-2:] == [1.0, "accuracy"]
    assert f"epoch {epochs}, step {steps}/{steps}: train loss" in caplog.text


def test_steps_count_from_where_a_fit_begins_and_a_generator_serves_while_it_lasts(qdq):
    trainer = Trainer(qdq)
    for _ in range(2):
        trainer.fit((batch for batch in batches(3)), steps=2)
    assert trainer.schedule.position.step == 4
    with pytest.raises(InputError, match="a generator can be read once"):
        trainer.fit((batch for batch in batches(2)), steps=3)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"epochs": 0}, "epochs is 0; it must be 1 or more"),
        ({"epochs": 1, "steps": 5}, "epochs is 1 and steps is 5; give one of them"),
    ],
    ids=["no step", "no epoch", "both"],
)
def test_a_length_that_is_none_or_two_is_refused(qdq, length, words):
    with pytest.raises(InputError, match=words):
        Trainer(qdq).fit(batches(1), **length)


def test_weights_biases_and_scales_all_move(qdq):
    trainer = Trainer(qdq, optimizer=AdamW(lr=1e-3))
    before = scales_of(qdq)
    trainer.fit(batches(), epochs=1)
    after = scales_of(trainer.model())
    floats = [name for name, array in before.items() if array.dtype == np.float32]
    assert [name for name in floats if np.array_equal(before[name], after[name])] == []


def test_scales_stay_positive_at_an_absurd_learning_rate(qdq):
    trainer = Trainer(qdq, optimizer=SGD(lr=1.0, momentum=0.0), freeze=["w.", "b."], clip_norm=None)
    for batch in batches(20):
        trainer.step(batch)
    assert all((a > 0).all() for name, a in scales_of(trainer.model()).items() if name.endswith("scale"))


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_a_model_of_onnxruntimes_quantizer_trains(per_channel, tmp_path):
    batch, *_ = batches(1)
    given = [{"x": one["x"]} for one in batches(2)]
    logging.disable(logging.WARNING)
    try:
        foreign = quantized_by_onnxruntime(model(BODY, **WEIGHTS), tmp_path, given, per_channel=per_channel)
    finally:
        logging.disable(logging.NOTSET)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    logits = ort.InferenceSession(foreign.SerializeToString(), options).run(None, {"x": batch["x"]})[0]
    expected = cross_entropy(logits, batch["label"])

    trainer = Trainer(foreign, optimizer=AdamW(lr=3e-3))
    assert trainer.evaluate([batch])["loss"] == pytest.approx(expected, rel=1e-5)
    before = trainer.evaluate(batches())
    trainer.fit(batches(), epochs=5)
    assert trainer.evaluate(batches())["loss"] < before["loss"]


@pytest.mark.parametrize(
    "freeze", [["w1"], ["w1", "w1_scale"], [".*bias|b[123]"]], ids=["weight", "and scale", "pattern"]
)
def test_frozen_initializers_do_not_move(qdq, freeze):
    trainer = Trainer(qdq, optimizer=AdamW(lr=1e-2), freeze=freeze)
    trainer.fit(batches(), epochs=1)
    before, after = scales_of(qdq), scales_of(trainer.model())
    frozen = [n for n in before if any(re.fullmatch(p, n) for p in freeze)]
    assert frozen
    assert all(np.array_equal(before[n], after[n]) for n in frozen)


def test_freezing_what_is_not_there_is_an_error(qdq):
    with pytest.raises(InputError, match="nothing_of_this_name"):
        Trainer(qdq, freeze=["nothing_of_this_name"])


def test_two_runs_are_bitwise_equal(qdq):
    runs = []
    for _ in range(2):
        trainer = Trainer(qdq, optimizer=AdamW(lr=1e-3), schedule=Cosine())
        trainer.fit(batches(), epochs=2)
        runs.append(trainer.state.parameters.tobytes())
    assert runs[0] == runs[1]


def test_nothing_is_copied_between_steps(qdq):
    trainer = Trainer(qdq)
    addresses = set()
    for batch in batches(3):
        trainer.step(batch)
        addresses.add((trainer.state.parameters.ctypes.data, *(m.ctypes.data for m in trainer.state.moments)))
    assert len(addresses) == 1


def test_gradients_update_nothing(qdq):
    trainer = Trainer(qdq)
    before = trainer.state.parameters.copy()
    trainer.gradients(batches(1)[0])
    np.testing.assert_array_equal(trainer.state.parameters, before)


EVEN, UNEVEN, NONE = (16, 16, 16, 16), (24, 8, 1, 31), (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("loss", "rows", "ignored"),
    [
        ("cross_entropy", EVEN, NONE),
        ("cross_entropy", UNEVEN, NONE),
        ("distill", UNEVEN, NONE),
        ("cross_entropy", EVEN, (15, 0, 7, 1)),
        ("bce_with_logits", UNEVEN, (15, 0, 0, 7)),
    ],
    ids=["even", "uneven", "uneven, distilling", "ignored labels", "uneven, ignored sides"],
)
def test_accumulated_batches_are_one_step_on_all_of_them(qdq, loss, rows, ignored):
    said = {"loss": loss, "optimizer": SGD(lr=0.01), "ignore_label": 255 if any(ignored) else None}
    whole = batches(1, rows=sum(rows))[0]
    starts = np.cumsum((0, *rows[:-1]))
    for start, count in zip(starts, ignored, strict=True):
        whole["label"][start : start + count] = 255
    if loss == "bce_with_logits":
        whole["label"] = np.where(whole["label"][:, None] == 255, 255, whole["label"][:, None] == np.arange(5))
    together, apart = Trainer(qdq, **said), Trainer(qdq, **said, accumulate=4)
    together.step(whole)
    for start, count in zip(starts, rows, strict=True):
        apart.step({name: array[start : start + count] for name, array in whole.items()})
    assert apart.schedule.position.step == 1
    np.testing.assert_allclose(apart.state.parameters, together.state.parameters, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_norm_of_what_is_applied(qdq):
    trainer = Trainer(qdq, optimizer=SGD(lr=1.0, momentum=0.0), clip_norm=1e-3, freeze=[".*scale"])
    before = trainer.state.parameters.copy()
    trainer.step(batches(1)[0])
    moved = np.linalg.norm(trainer.state.parameters - before)
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_the_best_epoch_is_what_remains(qdq):
    class Watch(Callback):
        def __init__(self):
            self.scores, self.kept = [], []

        def on_epoch_end(self, trainer, metrics):
            self.scores.append(metrics["validation_accuracy"])
            self.kept.append(trainer.state.parameters.copy())

    watch = Watch()
    trainer = Trainer(qdq, optimizer=AdamW(lr=0.1))
    trainer.fit(batches(), epochs=4, validation=batches(3, seed=5), callbacks=[watch])
    np.testing.assert_array_equal(trainer.state.parameters, watch.kept[int(np.argmax(watch.scores))])


def test_early_stopping_ends_the_run(qdq):
    trainer = Trainer(qdq, optimizer=SGD(lr=1e-12))
    trainer.fit(batches(), epochs=10, validation=batches(1), callbacks=[EarlyStopping(patience=2)])
    assert trainer.schedule.position.epoch == 3


def test_json_lines_hold_every_step_and_epoch(qdq, tmp_path):
    Trainer(qdq).fit(batches(3), epochs=2, callbacks=[JsonLines(tmp_path / "log.jsonl")])
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "step" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["epoch"] for r in records if "epoch" in r] == [1, 2]


def test_interrupting_leaves_the_trainer_usable(qdq):
    class Interrupt(Callback):
        def on_step_end(self, trainer, loss):
            if trainer.schedule.position.step == 4:
                raise KeyboardInterrupt

    trainer = Trainer(qdq)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(batches(), epochs=2, callbacks=[Interrupt()])
    uninterrupted = Trainer(qdq)
    for batch in batches()[:4]:
        uninterrupted.step(batch)
    np.testing.assert_array_equal(trainer.state.parameters, uninterrupted.state.parameters)
    trainer.fit(batches(), epochs=2)
    assert trainer.schedule.position.step == 12


@pytest.mark.parametrize("loss", ["distill", {"distill": 1.0, "cross_entropy": 0.5}], ids=["alone", "with labels"])
def test_distilling_brings_the_quantized_model_closer_to_the_float_model(loss):
    float_model = model(BODY, **WEIGHTS)
    config = Config(weight_bits=3, activation_bits=3, output_correction="none")
    quantized = insert(float_model, calibration=[{"x": b["x"]} for b in batches(2)], config=config)
    trainer = Trainer(quantized, loss=loss, optimizer=AdamW(lr=3e-3), teacher=float_model)
    before = trainer.evaluate(batches())["loss"]
    trainer.fit(batches(), epochs=5)
    assert trainer.evaluate(batches())["loss"] < before


def test_a_teacher_whose_weights_are_rounded_is_warned_of(qdq, caplog):
    Trainer(qdq, loss="distill")
    assert "give the float model as teacher" not in caplog.text
    Trainer(fold(qdq), loss="distill", teacher=model(BODY, **WEIGHTS))
    assert "give the float model as teacher" not in caplog.text
    Trainer(fold(qdq), loss="distill")
    assert "give the float model as teacher" in caplog.text


@pytest.mark.parametrize("how", ["corrected", "reconstructed"])
def test_weights_that_were_changed_for_their_quantizers_do_not_teach(how):
    proto = model(BODY, **WEIGHTS)
    data = [{"x": b["x"]} for b in batches(2)]
    changed = insert(proto, data, Config(output_correction="mean" if how == "corrected" else "none"))
    if how == "reconstructed":
        changed = reconstruct(changed, proto, data, steps=1)
    Trainer(changed, loss="distill", teacher=proto)
    with pytest.raises(InputError, match=r"has changed weights or biases.*give the float model as teacher"):
        Trainer(changed, loss="distill")


def test_the_default_teacher_is_the_model_without_quantizers(qdq):
    batch = batches(1)[0]
    given = Trainer(qdq, loss="distill", teacher=model(BODY, **WEIGHTS)).evaluate([batch])["loss"]
    default = Trainer(qdq, loss="distill").evaluate([batch])["loss"]
    assert default == pytest.approx(given, rel=1e-2)  # its biases lie on their int32 grid


def test_a_float_model_is_refused():
    with pytest.raises(InputError, match="no quantizers"):
        Trainer(model(BODY, **WEIGHTS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": np.full(16, 5)}, "5 classes"),
        ({"label": np.full(16, -1)}, "5 classes"),
        ({"label": np.zeros(16, np.float32)}, "class numbers"),
        ({"label": np.zeros((16, 2), np.int64)}, "shape"),
        ({"label": np.zeros(3, np.int64)}, "shape"),
        ({"x": np.full((16, 3, 8, 8), np.nan, np.float32)}, "NaN"),
        ({"x": np.zeros((16, 3, 8), np.float32)}, "shape"),
        ({"x": np.zeros((16, 3, 8, 8), np.complex64)}, "type"),
        ({"unknown": np.zeros(3)}, "unknown"),
    ],
    ids=["too large", "negative", "float labels", "rank", "rows", "NaN", "input rank", "input type", "unknown name"],
)
def test_a_batch_that_does_not_fit_is_refused(qdq, change, words):
    trainer = Trainer(qdq)
    with pytest.raises(InputError, match=words) as caught:
        trainer.step(batches(1)[0] | change)
    assert "\n" not in str(caught.value)


def test_labels_are_checked_where_the_model_leaves_the_number_of_classes_open(qdq):
    open_ended = onnx.ModelProto()
    open_ended.CopyFrom(qdq)
    del open_ended.graph.output[0].type.tensor_type.shape.dim[:]
    for name in ("N", "C"):
        open_ended.graph.output[0].type.tensor_type.shape.dim.add().dim_param = name
    trainer = Trainer(open_ended)
    with pytest.raises(InputError, match="5 classes"):
        trainer.step(batches(1)[0] | {"label": np.full(16, 7)})


class Epochs(list):
    """A loader that is told its epoch."""

    def __init__(self, items):
        super().__init__(items)
        self.seen = []

    def set_epoch(self, epoch):
        self.seen.append(epoch)


def test_a_loader_is_told_the_epoch(qdq):
    loader = Epochs(batches(2))
    Trainer(qdq).fit(loader, epochs=3)
    assert loader.seen == [0, 1, 2]


def test_a_batch_without_labels_is_refused(qdq):
    with pytest.raises(InputError, match="label"):
        Trainer(qdq).step({"x": batches(1)[0]["x"]})


def test_an_empty_loader_is_refused(qdq):
    with pytest.raises(InputError, match="no batches"):
        Trainer(qdq).fit([])


@pytest.mark.parametrize("form", ["tuple", "torch", "generator function"])
def test_batches_come_in_any_form(qdq, form):
    expected = Trainer(qdq).evaluate(batches(2))
    pairs = [(b["x"], b["label"]) for b in batches(2)]
    tensor = pytest.importorskip("torch").tensor if form == "torch" else np.asarray
    given = {
        "tuple": pairs,
        "torch": [tuple(map(tensor, pair)) for pair in pairs],
        "generator function": lambda: iter(pairs),
    }[form]
    assert Trainer(qdq).evaluate(given) == expected


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_parameters(qdq):
    trainer = Trainer(qdq, loss="mse")
    batch = {"x": batches(1)[0]["x"], "label": np.zeros((16, 5), np.float32)}
    trainer.step(batch)
    before = trainer.state.parameters.copy()
    with pytest.raises(TrainingError, match=r"step 2: the loss is not finite.*'label' holds numbers"):
        trainer.step(batch | {"label": np.full((16, 5), 3e38, np.float32)})
    np.testing.assert_array_equal(trainer.state.parameters, before)


def test_operators_without_gradient_are_named_before_training(qdq):
    unknown = onnx.ModelProto()
    unknown.CopyFrom(qdq)
    pool = next(node for node in unknown.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type, pool.name = "Unique", "pool"
    flatten = next(node for node in unknown.graph.node if node.op_type == "Reshape")
    flatten.input[1] = "rows"  # of six values, as the Gemm reads them
    unknown.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 6]), "rows"))
    with pytest.raises(UnsupportedModelError, match="Unique 'pool'"):
        Trainer(unknown)


@pytest.mark.slow
def test_training_recovers_what_four_bits_lost_on_a_real_model():
    float_model = Path(__file__).parents[2] / "models" / "separable.onnx"
    config = Config(weight_bits=4, activation_bits=4, output_correction="none")
    quantized = insert(float_model, calibration=fashion_mnist.calibration_nhwc(), config=config)
    trainer = Trainer(quantized, schedule=Cosine(warmup_steps=5))
    train, validation = list(islice(fashion_mnist.train_nhwc(), 25)), list(islice(fashion_mnist.validation_nhwc(), 8))
    before = trainer.evaluate(validation)["accuracy"]
    trainer.fit(train, epochs=1)
    assert trainer.evaluate(validation)["accuracy"] > before + 0.05


def test_a_trainer_is_made_without_warnings_of_the_libraries_below(qdq, caplog):
    Trainer(qdq)
    assert [record.message for record in caplog.records if not record.name.startswith("onnxqat")] == []
