"""Options of training on the command line: `run` has all that `train` has, and what is given reaches the trainer."""

from __future__ import annotations

import sys
from dataclasses import fields

import numpy as np
import onnx
import pytest
import typer

from onnxqat import SGD, Trainer, callbacks, cli, insert
from onnxqat.cli.options import TrainingOptions
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
}


def options_of(command: str) -> set[str]:
    return {name for option in typer.main.get_command(cli.app).commands[command].params for name in option.opts}


def test_every_training_option_is_one_of_both_commands():
    named = {f"--{field.name.replace('_', '-')}" for field in fields(TrainingOptions)}
    assert named == {*GIVEN, "--resume"}
    assert named <= options_of("train") & options_of("run")


@pytest.mark.parametrize("command", ["train", "run"])
def test_every_training_option_reaches_the_trainer(command, tmp_path, monkeypatch):
    onnx.save(FLOAT, tmp_path / "float.onnx")
    onnx.save(insert(FLOAT, [ROWS]), tmp_path / "qdq.onnx")
    np.savez(tmp_path / "data.npz", x=ROWS, label=np.arange(64) % 5)
    monkeypatch.chdir(tmp_path)
    made, fit = [], Trainer.fit

    def watched(trainer, batches, epochs, validation, called):
        made.append((trainer, epochs, called))
        fit(trainer, batches, epochs, validation, called)

    monkeypatch.setattr(Trainer, "fit", watched)
    given = [word for pair in GIVEN.items() for word in pair]
    source = "qdq.onnx" if command == "train" else "float.onnx"
    call = ["onnxqat", command, source, "--data", "data.npz", "--batch-size", "16", *given, "-o", "o.onnx"]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    ((trainer, epochs, called),) = made
    assert epochs == 2
    assert trainer.optimizer == SGD(lr=0.002, weight_decay=0.01)
    assert trainer.schedule.position.step == 4  # of 8 batches, two at a time
    kinds = [callbacks.JsonLines, callbacks.TensorBoard, callbacks.EarlyStopping, callbacks.Checkpoints]
    assert [type(one) for one in called] == kinds
    assert (tmp_path / "log.jsonl").stat().st_size
    assert list((tmp_path / "board").iterdir())
    facts = trainer._origin().facts
    wanted = {"clip_norm": 0.5, "accumulate": 2, "seed": 3, "freeze": ["b"], "loss": ["distill"]}
    assert {name: facts["arguments"][name] for name in wanted} == wanted
    assert facts["threads"] == 1
    assert facts["arguments"]["teacher"]
    monkeypatch.setattr(sys, "argv", [*call, "--resume"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert made[1][0].resumed_from is not None
