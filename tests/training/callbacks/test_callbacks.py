import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import onnxqat
from onnxqat.callbacks import Callback, EarlyStopping, JsonLines, TensorBoard
from onnxqat.errors import InputError, MissingExtraError, TrainingError
from onnxqat.training.optimize.schedules import Cosine
from onnxqat.training.trainer import Trainer
from tests.command_line import status_of
from tests.models import model
from tests.training.test_trainer import BODY, WEIGHTS, batches


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in batches(2)])


class Diary(Callback):
    """Records when it is called."""

    def __init__(self):
        self.calls = []

    def on_train_begin(self, trainer):
        self.calls.append("begin")

    def on_step_end(self, trainer, loss):
        self.calls.append(f"step {trainer.schedule.position.step}")

    def on_epoch_end(self, trainer, metrics):
        self.calls.append(f"epoch {trainer.schedule.position.epoch}")

    def on_train_end(self, trainer):
        self.calls.append("end")


def scalars(folder):
    """Returns what TensorBoard itself reads: steps and values by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_callbacks_are_called_in_the_order_of_the_run(qdq):
    diary = Diary()
    Trainer(qdq).fit(batches(2), epochs=2, callbacks=[diary])
    assert diary.calls == ["begin", "step 1", "step 2", "epoch 1", "step 3", "step 4", "epoch 2", "end"]


def test_the_end_is_called_after_an_error_too(qdq):
    diary = Diary()
    bad = {"x": batches(1)[0]["x"], "label": np.full((16, 5), 3e38, np.float32)}
    with pytest.raises(TrainingError):
        Trainer(qdq, loss="mse").fit([bad], epochs=1, callbacks=[diary])
    assert diary.calls == ["begin", "end"]


def test_a_callback_can_end_the_run(qdq):
    class Stop(Callback):
        def on_step_end(self, trainer, loss):
            trainer.stop = trainer.schedule.position.step == 3

    trainer = Trainer(qdq)
    trainer.fit(batches(2), epochs=5, callbacks=[Stop()])
    assert trainer.schedule.position.step == 3


def test_tensorboard_reads_losses_rates_metrics_scales_and_clipped_shares(qdq, tmp_path):
    trainer = Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-3), schedule=Cosine())
    log = JsonLines(tmp_path / "log.jsonl")
    trainer.fit(batches(3), epochs=2, validation=batches(1), callbacks=[TensorBoard(tmp_path / "board"), log])
    found = scalars(tmp_path / "board")
    steps = [r for r in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "step" in r]
    for tag, key in (("train/loss", "loss"), ("train/lr", "lr")):
        assert found[tag] == [(r["step"], pytest.approx(r[key], rel=1e-6)) for r in steps]
    assert [step for step, _ in found["epoch/validation_accuracy"]] == [3, 6]


def test_scales_and_shares_on_the_board_are_those_of_the_statistics(qdq, tmp_path):
    trainer = Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.fit(batches(3), epochs=1, callbacks=[TensorBoard(tmp_path)])
    found = scalars(tmp_path)
    for quantizer in trainer.statistics().quantizers:
        assert found[f"scale/{quantizer.value}/smallest"] == [(3, pytest.approx(quantizer.scale[0], rel=1e-6))]
        assert found[f"scale/{quantizer.value}/largest"] == [(3, pytest.approx(quantizer.scale[1], rel=1e-6))]
        assert found[f"clipped/{quantizer.value}"] == [(3, pytest.approx(quantizer.clipped, rel=1e-6))]


@pytest.mark.parametrize("make", [lambda p: TensorBoard(p / "file"), lambda p: JsonLines(p)], ids=["board", "lines"])
def test_a_log_that_cannot_be_written_is_named_before_the_first_step(make, qdq, tmp_path):
    (tmp_path / "file").write_text("")
    trainer, diary = Trainer(qdq), Diary()
    with pytest.raises(InputError, match=r"cannot be written \(.*\); choose another|is a folder; name a file"):
        trainer.fit(batches(1), epochs=1, callbacks=[diary, make(tmp_path)])
    assert diary.calls == ["begin", "end"]


def test_patience_below_one_is_refused():
    with pytest.raises(InputError, match="patience is 0"):
        EarlyStopping(patience=0)


def test_missing_tensorboardx_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(
        MissingExtraError, match=r"tensorboardX is not installed; run `pip install 'onnxqat\[tensorboard\]'`"
    ):
        TensorBoard(tmp_path)


def test_tensorboard_needs_neither_torch_nor_tensorflow(tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, tensorflow=None, tensorboard=None)\n"
        "from types import SimpleNamespace as S\n"
        "from onnxqat.callbacks import TensorBoard\n"
        "run = S(schedule=S(position=S(step=1), factor=1.0), optimizer=S(lr=0.1))\n"
        f"board = TensorBoard({str(tmp_path)!r})\n"
        "board.on_train_begin(run); board.on_step_end(run, 2.5); board.on_train_end(run)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert scalars(tmp_path)["train/loss"] == [(1, 2.5)]


@pytest.fixture
def command(qdq, tmp_path):
    """Runs `onnxqat train` in this process on a model and data in `tmp_path`; returns the exit status."""
    onnx.save(qdq, tmp_path / "qdq.onnx")
    data = {name: np.concatenate([b[name] for b in batches(2)]) for name in ("x", "label")}
    np.savez(tmp_path / "data.npz", **data)

    def run(*options):
        given = ["train", tmp_path / "qdq.onnx", "--data", tmp_path / "data.npz", "--batch-size", 16]
        return status_of(*given, "-o", tmp_path / "out.onnx", *options)

    return run


def test_the_command_line_logs_and_stops_early(command, tmp_path):
    options = [
        "--log-file",
        tmp_path / "log.jsonl",
        "--tensorboard",
        tmp_path / "board",
        "--lr",
        "1e-30",
        "--epochs",
        "9",
    ]
    data = ["--validation", tmp_path / "data.npz", "--patience", "2"]
    assert command(*options, *data) == 0
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if "epoch" in r] == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path / "board")["train/loss"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patience", "0"], "patience is 0; it must be 1 or more"),
        (["--log-file", "absent/log.jsonl"], "absent/log.jsonl: the folder"),
    ],
    ids=["patience", "log"],
)
def test_the_command_line_refuses_in_one_line_and_writes_nothing(options, message, command, tmp_path, capsys):
    assert command(*options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "out.onnx").exists()


def batches_beside_a_folder_that_vanishes():
    """Data for the command line; from its second batch on the folder named in the environment is gone."""
    for number, batch in enumerate(batches(3)):
        if number == 1:
            shutil.rmtree(os.environ["VANISHING"])
        yield batch


def test_an_output_folder_deleted_in_the_middle_loses_no_weights(command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("VANISHING", str(folder))
    monkeypatch.chdir(Path(__file__).parents[3])
    places = [
        "-o",
        folder / "out.onnx",
        "--checkpoint",
        folder,
        "--log-file",
        folder / "log",
        "--tensorboard",
        folder / "board",
    ]
    data = ["--data", f"{__name__}:batches_beside_a_folder_that_vanishes"]
    assert command(*data, *places, "--epochs", "1") == 0
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))
    assert list(folder.glob("checkpoint-*.safetensors"))
