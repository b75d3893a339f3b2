import dataclasses
import inspect
import logging
import random
import shutil
from dataclasses import fields

import numpy as np
import onnx
import pytest
import torch
from onnxscript import opset17 as op
from onnxscript import script
from onnxscript.values import Opset
from torch.utils.data import DataLoader, TensorDataset

from onnxqat.callbacks import Checkpoints, EarlyStopping
from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.insertion import insert
from onnxqat.training.callbacks.ready_made import Callback
from onnxqat.training.execution import Execution
from onnxqat.training.optimize.optimizers import SGD, AdamW
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.resume import checkpoint_files, random_state
from onnxqat.training.trainer import Trainer
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches

ARGUMENTS = {
    "plain": {},
    "sgd": {"optimizer": SGD(lr=1e-2), "schedule": Cosine(warmup_steps=3)},
    "accumulating": {"accumulate": 4, "clip_norm": 1.0, "optimizer": AdamW(lr=1e-3, betas=(0.8, 0.99))},
    "two losses": {"loss": {"cross_entropy": 1.0, "distill": 0.5}, "freeze": ["b1"]},
}


@pytest.fixture(scope="module")
def qdq():
    return insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)], config=Config())


class KilledError(Exception):
    pass


class KillAfter(Callback):
    """Breaks off at a step, before the checkpoint of that step."""

    def __init__(self, steps):
        self.left = steps

    def on_step_end(self, trainer, loss):
        self.left -= 1
        if not self.left:
            raise KilledError


def outcome(trainer):
    state = trainer.state
    return [state.parameters.tobytes(), *(m.tobytes() for m in state.moments), trainer.schedule.position]


def interrupted(qdq, folder, data, killed_after, callbacks=list, every=1, arguments=None, **fit):
    trainer = Trainer(qdq, **(arguments or {}))
    with pytest.raises(KilledError):
        trainer.fit(data(), callbacks=[Checkpoints(folder, every), *callbacks(), KillAfter(killed_after)], **fit)


def test_restoring_gives_back_every_part_of_the_state(qdq, tmp_path):
    arguments = ARGUMENTS["accumulating"]
    trainer = Trainer(qdq, **arguments)
    with pytest.raises(KilledError):
        trainer.fit(batches(), epochs=3, validation=batches(1), callbacks=[KillAfter(9)])
    trainer.save(tmp_path / "x")
    restored = Trainer.restore(tmp_path / "x")
    for field in dataclasses.fields(trainer.state):
        before, after = getattr(trainer.state, field.name), getattr(restored.state, field.name)
        if field.name == "schedule":
            before, after = (before.spec, before.position), (after.spec, after.position)
        elif field.name == "best":
            (before, score), (after, score_after) = before, after
            assert score == score_after
        np.testing.assert_equal(after, before)
    assert restored.optimizer == trainer.optimizer


def test_every_argument_of_a_trainer_is_in_its_checkpoints(qdq, tmp_path):
    Trainer(qdq).save(tmp_path / "x")
    _, facts = checkpoint_files.read(tmp_path / "x")
    elsewhere = {"self", "qdq", "distributed", "execution"}
    assert {*inspect.signature(Trainer.__init__).parameters} - elsewhere == {*facts["arguments"]}
    assert {field.name for field in fields(Execution)} - {"layout"} <= facts.keys()  # the block says what layout it was


LENGTHS = {name: {"epochs": 3} for name in ARGUMENTS} | {"so many steps": {"steps": 13}}


@pytest.fixture(scope="module", params=LENGTHS)
def whole(request, qdq):
    """Arguments of a run and of its `fit`, and the run when it has ended."""
    arguments = ARGUMENTS.get(request.param, ARGUMENTS["sgd"])
    length = LENGTHS[request.param] | {"validation": batches(2, seed=1)}
    run = Trainer(qdq, **arguments)
    run.fit(batches(), **length)
    return arguments, length, run


@pytest.mark.parametrize("steps", [2, 9, 13], ids=["at the start", "within an epoch", "at the end of an epoch"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(qdq, tmp_path, whole, steps):
    arguments, length, expected = whole
    interrupted(qdq, tmp_path, batches, steps, arguments=arguments, **length)
    resumed = Trainer.restore(tmp_path)
    resumed.fit(batches(), callbacks=[Checkpoints(tmp_path)], **length)
    assert outcome(resumed) == outcome(expected)
    assert resumed.model().SerializeToString() == expected.model().SerializeToString()


def test_your_own_loop_resumes(qdq, tmp_path):
    whole, broken = Trainer(qdq, **ARGUMENTS["sgd"]), Trainer(qdq, **ARGUMENTS["sgd"])
    for trainer in (whole, broken):
        trainer.schedule.plan(epochs=1, steps_per_epoch=6)
    for batch in batches():
        whole.step(batch)
    for batch in batches()[:3]:
        broken.step(batch)
    broken.save(tmp_path / "x")
    resumed = Trainer(qdq, **ARGUMENTS["sgd"])
    resumed.resume(tmp_path / "x")
    for batch in batches()[resumed.schedule.position.step :]:
        resumed.step(batch)
    assert outcome(resumed) == outcome(whole)


def shuffled_by_torch():
    arrays = {name: np.concatenate([b[name] for b in batches()]) for name in ("x", "label")}
    return DataLoader(TensorDataset(*map(torch.from_numpy, arrays.values())), batch_size=16, shuffle=True)


class ShuffledByNumpy:
    def __iter__(self):
        data = batches()
        for index in np.random.permutation(len(data)):
            noise = random.gauss(0, 0.1)
            yield {**data[index], "x": data[index]["x"] + np.float32(noise)}

    def __len__(self):
        return 6


@pytest.mark.parametrize("data", [shuffled_by_torch, ShuffledByNumpy], ids=["torch", "numpy and python"])
@pytest.mark.parametrize("steps", [9, 13], ids=["within an epoch", "at the end of an epoch"])
def test_a_loader_that_draws_from_a_global_generator_goes_on_in_its_order(qdq, tmp_path, data, steps, caplog):
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    begin = random_state.capture()
    whole = Trainer(qdq)
    whole.fit(data(), epochs=3, validation=data())
    random_state.restore(begin)
    interrupted(qdq, tmp_path, data, steps, epochs=3, validation=data())
    random.random(), np.random.random(50), torch.rand(60)
    resumed = Trainer.restore(tmp_path)
    with caplog.at_level(logging.WARNING):
        resumed.fit(data(), epochs=3, validation=data())
    assert outcome(resumed) == outcome(whole)
    assert "other batches" not in caplog.text


def test_an_order_that_comes_from_elsewhere_is_warned_of(qdq, tmp_path, caplog):
    def data():
        return batches(seed=np.random.default_rng().integers(1 << 40))

    interrupted(qdq, tmp_path, data, 3, epochs=1)
    with caplog.at_level(logging.WARNING):
        Trainer.restore(tmp_path).fit(data(), epochs=1)
    assert "other batches" in caplog.text


@pytest.mark.parametrize("steps", [7, 13, 16])
def test_early_stopping_counts_on(qdq, tmp_path, steps):
    def stopping():
        return [EarlyStopping(patience=2)]

    arguments = {"optimizer": SGD(lr=1e-12)}
    whole = Trainer(qdq, **arguments)
    whole.fit(batches(), epochs=10, validation=batches(1), callbacks=stopping())
    interrupted(qdq, tmp_path, batches, steps, stopping, arguments=arguments, epochs=10, validation=batches(1))
    resumed = Trainer.restore(tmp_path)
    resumed.fit(batches(), epochs=10, validation=batches(1), callbacks=stopping())
    assert whole.schedule.position.epoch == resumed.schedule.position.epoch == 3


def test_a_run_that_had_ended_only_yields_its_model(qdq, tmp_path):
    whole = Trainer(qdq, optimizer=AdamW(lr=0.1))
    whole.fit(batches(), epochs=3, validation=batches(1), callbacks=[Checkpoints(tmp_path)])
    resumed = Trainer.restore(tmp_path)
    resumed.fit(batches(), epochs=3, validation=batches(1))
    assert outcome(resumed) == outcome(whole)


def test_a_second_fit_starts_from_the_beginning(qdq, tmp_path):
    trainer = Trainer(qdq)
    for _ in range(2):
        trainer.fit(batches(), epochs=2, callbacks=[Checkpoints(tmp_path)])
    assert trainer.schedule.position.epoch == 4
    assert [path.name[-18:] for path in checkpoint_files.numbered(tmp_path)] == [
        "000003.safetensors",
        "000004.safetensors",
    ]


def test_a_damaged_checkpoint_is_skipped_and_then_replaced(qdq, tmp_path, caplog):
    whole = Trainer(qdq)
    whole.fit(batches(), epochs=2)
    interrupted(qdq, tmp_path, batches, 8, epochs=2)
    older, damaged = checkpoint_files.numbered(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with caplog.at_level(logging.WARNING):
        resumed = Trainer.restore(tmp_path)
    assert damaged.name in caplog.text
    assert resumed.resumed_from == older
    resumed.fit(batches(), epochs=2, callbacks=[Checkpoints(tmp_path)])
    assert outcome(resumed) == outcome(whole)
    assert damaged not in checkpoint_files.numbered(tmp_path)
    Trainer.restore(tmp_path)


def other_weights(qdq):
    changed = onnx.ModelProto()
    changed.CopyFrom(qdq)
    weight = next(i for i in changed.graph.initializer if i.name == "w2")
    weight.raw_data = (onnx.numpy_helper.to_array(weight) * np.float32(1.5)).tobytes()
    return changed


def other_graph(qdq):
    changed = onnx.ModelProto()
    changed.CopyFrom(qdq)
    next(node for node in changed.graph.node if node.op_type == "Relu").op_type = "Tanh"
    return changed


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (other_graph, {}, "another model"),
        (other_weights, {}, "other weights"),
        (lambda qdq: qdq, {"loss": "distill"}, "loss cross_entropy, this run has distill"),
        (lambda qdq: qdq, {"optimizer": SGD(lr=1e-4)}, r"optimizer AdamW\(.*this run has SGD\("),
        (lambda qdq: qdq, {"optimizer": AdamW(lr=1e-3)}, r"lr=1e-05.*lr=0.001"),
        (lambda qdq: qdq, {"schedule": Cosine()}, r"schedule Constant\(.*Cosine\("),
        (lambda qdq: qdq, {"accumulate": 2}, "accumulate 1, this run has 2"),
        (lambda qdq: qdq, {"seed": 2}, "seed 0, this run has 2"),
        (lambda qdq: qdq, {"freeze": ["b1"]}, r"freeze \[\], this run has \['b1'\]"),
    ],
    ids=["graph", "weights", "loss", "optimizer", "learning rate", "schedule", "accumulate", "seed", "freeze"],
)
def test_a_checkpoint_of_another_run_is_refused(qdq, tmp_path, change, arguments, words):
    Trainer(qdq).save(tmp_path / "x")
    trainer = Trainer(change(qdq), **arguments)
    before = outcome(trainer)
    with pytest.raises(InputError, match=words) as caught:
        trainer.resume(tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert outcome(trainer) == before


def test_a_checkpoint_of_another_version_is_refused(qdq, tmp_path):
    Trainer(qdq).save(tmp_path / "x")
    tensors, facts = checkpoint_files.read(tmp_path / "x")
    checkpoint_files.write(tmp_path / "x", tensors, {**facts, "format": 99})
    with pytest.raises(InputError, match="format 99"):
        Trainer.restore(tmp_path / "x")


def test_another_number_of_threads_is_warned_of(qdq, tmp_path, caplog):
    Trainer(qdq, threads=1).save(tmp_path / "x")
    with caplog.at_level(logging.WARNING):
        Trainer(qdq, threads=2).resume(tmp_path / "x")
    assert "made by 1 threads, this run is of 2 threads" in caplog.text


def test_other_data_is_refused(qdq, tmp_path):
    interrupted(qdq, tmp_path, batches, 6, epochs=3)
    with pytest.raises(InputError, match=r"has 5 batches.*had 6"):
        Trainer.restore(tmp_path).fit(batches(5), epochs=3)


def test_a_new_run_does_not_write_over_an_old_ones_checkpoints(qdq, tmp_path):
    interrupted(qdq, tmp_path, batches, 6, epochs=3)
    before = checkpoint_files.numbered(tmp_path)
    with pytest.raises(InputError, match="earlier run"):
        Trainer(qdq).fit(batches(), epochs=3, callbacks=[Checkpoints(tmp_path)])
    assert checkpoint_files.numbered(tmp_path) == before


def test_what_a_file_cannot_hold_must_be_given_again(qdq, tmp_path):
    teacher = model(BODY, **WEIGHTS)
    Trainer(qdq, loss="distill", teacher=teacher).save(tmp_path / "x")
    with pytest.raises(InputError, match="teacher"):
        Trainer.restore(tmp_path / "x")
    Trainer.restore(tmp_path / "x", teacher=teacher)
    with pytest.raises(InputError, match="made with teacher"):
        Trainer.restore(tmp_path / "x", teacher=qdq)


@script(Opset("user", 1), default_opset=op)
def mean_error(y, target):
    return op.ReduceMean(op.Abs(y - target), keepdims=0)


def test_a_users_loss_function_is_restored(qdq, tmp_path):
    Trainer(qdq, loss=mean_error).save(tmp_path / "x")
    batch = {"x": batches(1)[0]["x"], "target": np.zeros((16, 5), np.float32)}
    assert Trainer.restore(tmp_path / "x").gradients(batch)[0] == Trainer(qdq, loss=mean_error).gradients(batch)[0]


def test_staged_quantization_goes_on_at_its_stage(tmp_path):
    images = [{"x": b["x"]} for b in batches(2)]
    staged = insert(model(BODY, **WEIGHTS), images, Config(activation_start_epoch=1, weight_start_epoch=2))
    whole = Trainer(staged)
    whole.fit(batches(), epochs=3)
    interrupted(staged, tmp_path, batches, 9, epochs=3)
    resumed = Trainer.restore(tmp_path)
    resumed.fit(batches(), epochs=3)
    assert outcome(resumed) == outcome(whole)


def test_a_folder_deleted_in_the_middle_is_made_again_and_numbers_go_on(qdq, tmp_path, caplog):
    class Deletes(Callback):
        def on_step_end(self, trainer, loss):
            if trainer.schedule.position.step == 3:
                shutil.rmtree(tmp_path / "runs")

    whole, trainer = Trainer(qdq), Trainer(qdq)
    whole.fit(batches(), epochs=1)
    trainer.fit(batches(), epochs=1, callbacks=[Deletes(), Checkpoints(tmp_path / "runs" / "here", every=1)])
    assert "was deleted" in caplog.text
    assert outcome(trainer) == outcome(whole)
    kept = checkpoint_files.numbered(tmp_path / "runs" / "here")
    assert [path.stem for path in kept] == ["checkpoint-000006", "checkpoint-000007"]


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(qdq, tmp_path):
    left = tmp_path / ".checkpoint-000009.safetensors.0123abcd.tmp"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    Trainer(qdq).fit(batches(1), epochs=1, callbacks=[Checkpoints(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001.safetensors"]
