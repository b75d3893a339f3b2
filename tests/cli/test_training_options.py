"""Options of training on the command line: `run` has all that `train` has, and what is given reaches the trainer."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import onnx
import pytest
import typer

from onnxqat import SGD, Trainer, callbacks, cli, insert
from onnxqat.cli.options import Execution, Keeping, Training
from tests.command_line import status_of
from tests.models import model, random

NET = "(float[N,8] x) => (float[N,5] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
FLOAT = model(NET, w=random(8, 16), b=random(16), v=random(16, 5), c=random(5))
ROWS = random(64, 8, scale=1.0)
GIVEN = {
    "--loss": "distill",
    "--epochs": "2",
    "--lr": "0.002",
    "--optimizer": "sgd",
    "--weight-decay": "0.01",
    "--clip-norm": "0.5",
    "--accumulate": "2",
    "--seed": "3",
    "--freeze": "b",
    "--teacher": "float.onnx",
    "--log-file": "log.jsonl",
    "--tensorboard": "board",
    "--patience": "5",
    "--checkpoint": "checkpoints",
    "--checkpoint-every": "1",
    "--threads": "1",
    "--layout": "plain",
    "--engine": "runtime",
    "--memory": "low",
    "--provider": "cpu",
}


def options_of(command: str) -> set[str]:
    return {name for option in typer.main.get_command(cli.app).commands[command].params for name in option.opts}


def test_every_training_option_is_one_of_both_commands():
    named = {f"--{field.name.replace('_', '-')}" for group in (Training, Execution, Keeping) for field in fields(group)}
    assert named == {*GIVEN, "--resume", "--strict", "--steps", "--until", "--augment", "--learn-zero-points"}
    assert named <= options_of("train") & options_of("run")


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Calls a command on small models and data, in a folder of its own; returns the exit status."""
    onnx.save(FLOAT, tmp_path / "float.onnx")
    onnx.save(insert(FLOAT, [ROWS]), tmp_path / "qdq.onnx")
    np.savez(tmp_path / "data.npz", x=ROWS, label=np.arange(64) % 5)
    monkeypatch.chdir(tmp_path)

    def called(command: str, *given: str) -> int:
        source = "qdq.onnx" if command == "train" else "float.onnx"
        files = [source, "--data", "data.npz", "--batch-size", "16", "-o", "o.onnx"]
        return status_of(command, *files, *given)

    return called


@pytest.mark.parametrize("command", ["train", "run"])
def test_every_training_option_reaches_the_trainer(command, called, tmp_path, monkeypatch, capsys):
    made, fit = [], Trainer.fit

    def watched(trainer, batches, epochs, validation, callbacks, steps, until, metric, augment):
        made.append((trainer, epochs, callbacks))
        fit(trainer, batches, epochs, validation, callbacks, steps=steps, until=until, metric=metric, augment=augment)

    monkeypatch.setattr(Trainer, "fit", watched)
    given = ["--learn-zero-points", *(word for pair in GIVEN.items() for word in pair)]
    assert called(command, *given) == 0
    ((trainer, epochs, given_callbacks),) = made
    assert epochs == 2
    assert trainer.optimizer == SGD(lr=0.002, weight_decay=0.01)
    assert trainer.schedule.position.step == 4  # of 8 batches, two at a time
    kinds = [callbacks.JsonLines, callbacks.TensorBoard, callbacks.EarlyStopping, callbacks.Checkpoints]
    assert [type(one) for one in given_callbacks] == kinds
    assert (tmp_path / "log.jsonl").stat().st_size
    assert list((tmp_path / "board").iterdir())
    facts = trainer._record.origin().facts
    wanted = {
        "clip_norm": 0.5,
        "accumulate": 2,
        "seed": 3,
        "freeze": ["b"],
        "loss": ["distill"],
        "learn_zero_points": True,
    }
    assert {name: facts["arguments"][name] for name in wanted} == wanted
    assert (facts["threads"], facts["engine"], facts["provider"]) == (1, "runtime", "cpu")
    assert facts["arguments"]["teacher"]
    assert called(command, *given, "--resume", "--strict") == 0
    assert made[1][0].resumed_from is not None
    assert called(command, *given, "--resume", "--strict", "--threads", "2") == 2
    assert "1 threads of the engine runtime, this run is of 2 threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--steps", "2"], 0, "epoch 1, step 2/2: train loss"),
        (["--steps", "2", "--epochs", "1"], 2, "error: epochs is 1 and steps is 2; give one of them"),
        (["--steps", "0"], 2, "error: steps is 0; it must be 1 or more"),
    ],
    ids=["alone", "beside epochs", "none"],
)
@pytest.mark.parametrize("command", ["train", "run"])
def test_a_number_of_steps_ends_training(command, given, status, said, called, capsys):
    assert called(command, *given) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--until", "loss=100"], 0, "before training: validation loss is"),
        (["--until", "f1=-1"], 0, "before training: validation f1 is"),
        (["--until", "accuracy=1.01"], 0, "until: accuracy of 1.01 was not reached"),
        (["--until", "0.9"], 2, "error: --until 0.9: is not METRIC=NUMBER, such as accuracy=0.92; fix it"),
        (["--until", "fame=1"], 2, "metric 'fame': is not one of accuracy"),
    ],
    ids=["reached", "reached by a metric", "not reached", "no bound", "no such metric"],
)
@pytest.mark.parametrize("command", ["train", "run"])
def test_a_bound_on_validation_ends_training(command, given, status, said, called, capsys):
    assert called(command, "--validation", "data.npz", "--epochs", "1", *given) == status
    assert said in capsys.readouterr().err


def test_a_bound_without_validation_data_is_refused_before_any_work(called, capsys):
    assert called("run", "--until", "accuracy=0.9") == 2
    assert (
        "error: until: is judged on validation data, and none is given; add --validation DATA"
        in capsys.readouterr().err
    )


LOSS = """import onnx
halved = onnx.parser.parse_function('''
<opset_import: ["": 17], domain: "mine"> halved (y, label) => (loss) {
    whole = SoftmaxCrossEntropyLoss (y, label)
    half = Constant <value: tensor = float {0.5}> ()
    loss = Mul (whole, half)
}''')
def made(): return halved
def seven(): return 7
def plain(y, label): return 0
"""


def test_loss_is_a_function_of_the_user(called, tmp_path, capsys):
    (tmp_path / "my_losses.py").write_text(LOSS)
    losses = {}
    for loss in ("cross_entropy", "my_losses:halved", "my_losses:made"):
        assert called("train", "--loss", loss, "--epochs", "1", "--lr", "1e-9") == 0
        losses[loss] = float(capsys.readouterr().err.split("train loss ")[1].split()[0])
    assert (
        losses["my_losses:halved"] == losses["my_losses:made"] == pytest.approx(losses["cross_entropy"] / 2, abs=1e-4)
    )


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (["my_losses:halved", "mse"], "--loss my_losses:halved: is a function, and other losses are given with it"),
        (["my_losses:seven"], "loss: int is neither a name nor an ONNX function"),
        (["my_losses:none"], "has no 'none'"),
        (["my_losses:plain"], "--loss my_losses:plain: is a Python function of outputs and labels"),
    ],
)
def test_loss_that_is_no_function_is_refused(called, tmp_path, capsys, losses, said):
    (tmp_path / "my_losses.py").write_text(LOSS)
    assert called("run", *[word for loss in losses for word in ("--loss", loss)]) == 2
    assert said in capsys.readouterr().err


def test_best_epoch_is_that_of_the_metric(called, capsys):
    assert called("run", "--validation", "data.npz", "--epochs", "1", "--metric", "f1", "--json", "r.json") == 0
    said = capsys.readouterr().err
    assert "validation f1" in said
    assert "float model: f1" in said


@pytest.mark.parametrize("command", ["train", "run"])
def test_epochs_are_judged_by_the_loss_where_there_is_no_other_metric(command, called, capsys):
    assert called(command, "--validation", "data.npz", "--epochs", "1", "--loss", "distill") == 0
    said = capsys.readouterr().err
    assert re.search(r"before training: validation loss \d", said)


def test_augmentation_is_a_function_of_the_user(called, tmp_path, capsys):
    (tmp_path / "my_data.py").write_text(
        "def zero(batch): return {**batch, 'x': 0 * batch['x']}\ndef bad(batch): return 1 / 0\ndef none(batch): batch['x']\n"
    )
    losses = []
    for given in ([], ["--augment", "my_data:zero"]):
        assert called("train", "--epochs", "1", "--lr", "1e-9", *given) == 0
        losses.append(capsys.readouterr().err.split("train loss ")[1].split()[0])
    assert losses[0] != losses[1]
    assert called("run", "--epochs", "1", "--augment", "my_data:bad") == 2
    assert "augment: fails on batch 0 (ZeroDivisionError" in capsys.readouterr().err
    assert called("run", "--epochs", "1", "--augment", "my_data:none") == 2
    assert "batch 0: is None; let the loader, or the function that changes" in capsys.readouterr().err
