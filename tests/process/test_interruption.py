"""Signals: results are written, the way to resume is printed, the exit status says so, and no step is half taken."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxqat import Trainer, insert
from onnxqat.process import interruption
from onnxqat.process.interruption import Interrupted
from onnxqat.training.optimize.update import Updater
from tests.command_line import status_of
from tests.models import model, random

NET = "(float[N,8] x) => (float[N,5] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
FLOAT = model(NET, w=random(8, 16), b=random(16), v=random(16, 5), c=random(5))
ROWS = random(64, 8, scale=1.0)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    np.savez(folder / "data.npz", x=ROWS, label=np.arange(64) % 5)
    onnx.save(FLOAT, folder / "float.onnx")
    onnx.save(insert(FLOAT, [ROWS]), folder / "qdq.onnx")
    return folder


@contextmanager
def handled():
    """Signals are handled as Python does by itself, whatever those who started the tests, or other tests, have set."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in interruption.SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a library's own


@contextmanager
def started(command: list[object], folder: Path):
    """A process that handles signals; it is gone at the end."""
    with handled():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def onnxqat(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "onnxqat", *arguments]


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")],
)
def test_train_writes_what_was_reached_and_says_how_to_go_on(folder, tmp_path, monkeypatch, number, status, name):
    output, log = tmp_path / "t.onnx", tmp_path / "log.jsonl"
    command = onnxqat("train", "qdq.onnx", "--data", "data.npz", "--epochs", 10**6, "--log-file", log, "-o", output)
    if number == signal.SIGTERM:
        command += ["--validation", "data.npz"]
    with started(command, folder) as process:
        wait_for(lambda: log.exists() and '"epoch": 2' in log.read_text(), process)
        process.send_signal(number)
        if number == signal.SIGTERM:
            process.send_signal(number)  # as `timeout` does
        _, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"interrupted by {name}"
    which = "best model so far" if number == signal.SIGTERM else "last step"
    said = next(line for line in err.splitlines() if "after step" in line)
    assert f"written are the parameters of the {which}; resume with: onnxqat train qdq.onnx " in said
    assert said.endswith(f" --checkpoint {output}.checkpoints --resume")
    onnx.checker.check_model(onnx.load(output))
    if number == signal.SIGHUP:
        words = shlex.split(said.split("resume with: ")[1])
        words[words.index("--epochs") + 1] = "1"
        monkeypatch.chdir(folder)
        assert status_of(*words[1:]) == 0


def test_run_writes_the_deployed_model_that_was_reached(folder, tmp_path):
    output, checkpoints = tmp_path / "d.onnx", tmp_path / "checkpoints"
    options = ["--data", "data.npz", "--epochs", 10**6, "--checkpoint", checkpoints, "-o", output]
    with started(onnxqat("run", "float.onnx", *options), folder) as process:
        wait_for(lambda: checkpoints.exists() and list(checkpoints.glob("*.safetensors")), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    assert f"--checkpoint {checkpoints} -o {output} --resume" in err
    assert any(node.op_type == "DequantizeLinear" for node in onnx.load(output).graph.node)


def test_a_signal_before_anything_is_trained_ends_with_its_status_and_writes_nothing(folder, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef data():\n pathlib.Path('begun').touch()\n time.sleep(99)\n"
    )
    command = onnxqat("insert", folder / "float.onnx", "--calibration", "slow:data", "-o", "q.onnx")
    with started(command, tmp_path) as process:
        wait_for((tmp_path / "begun").exists, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "interrupted by SIGTERM\n")
    assert not (tmp_path / "q.onnx").exists()


@pytest.fixture
def raising():
    with handled(), interruption.raising():
        yield


def hold(*numbers: int, pause: float = 0.0) -> list[int]:
    """The numbers of the signals that did not end what is held."""
    done = []
    try:
        with interruption.held():
            for number in numbers:
                signal.raise_signal(number)
                done.append(number)
                time.sleep(pause)
    except Interrupted:
        return done
    pytest.fail("no signal came")


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_waits_until_what_is_held_is_done(raising, number):
    assert hold(number, number) == [number, number]


def test_a_signal_that_follows_at_once_is_the_same_one(raising):
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


def test_a_later_signal_does_not_wait(raising, monkeypatch):
    monkeypatch.setattr(interruption, "AT_ONCE", 0.0)
    assert hold(signal.SIGINT, signal.SIGINT, pause=0.01) == [signal.SIGINT]


def test_what_is_ignored_stays_ignored_and_handlers_are_given_back(monkeypatch):
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.raising():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_other_threads_handle_no_signals():
    def body() -> None:
        with interruption.raising(), interruption.held():
            passed.append(True)

    passed: list[bool] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert passed


# a signal may come while Python finalizes an object, and is lost there
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_moment_leaves_whole_steps_that_go_on_to_the_same_end(monkeypatch):
    """Interrupted over and over, in steps and in validation, a run ends bit for bit as one that is left alone."""
    monkeypatch.setattr(interruption, "AT_ONCE", 0.0)
    qdq = insert(FLOAT, [ROWS])
    batches = [{"x": ROWS[n : n + 8], "label": np.arange(n, n + 8) % 5} for n in range(0, 64, 8)]
    alone, often = Trainer(qdq, threads=1), Trainer(qdq, threads=1)
    begun = time.perf_counter()
    alone.fit(batches, epochs=4, validation=batches[:2])
    taken = time.perf_counter() - begun
    interrupted = 0
    with handled(), interruption.raising(), alarm():
        for moment in np.random.default_rng(0).uniform(0.02, 0.3, 500) * taken:
            signal.setitimer(signal.ITIMER_REAL, moment)
            try:
                try:
                    often.fit(batches, epochs=4, validation=batches[:2])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            if often.has_begun and not often.state.running:
                break
    assert often.schedule.position == alone.schedule.position
    assert often.model() == alone.model()
    assert interrupted > 1


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(raising, monkeypatch):
    qdq = insert(FLOAT, [ROWS])
    batches = [{"x": ROWS[n : n + 8], "label": np.arange(n, n + 8) % 5} for n in range(0, 64, 8)]
    alone, stopped = Trainer(qdq, threads=1), Trainer(qdq, threads=1)
    alone.fit(batches, epochs=1)
    update, calls = Updater.__call__, []

    def interrupted(*arguments: Any) -> None:
        update(*arguments)
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Updater, "__call__", interrupted)
    with pytest.raises(Interrupted):
        stopped.fit(batches, epochs=1)
    assert (stopped.schedule.position.step, stopped.state.batch) == (3, 3)
    stopped.fit(batches, epochs=1)
    assert len(calls) == 8
    assert stopped.model() == alone.model()


@contextmanager
def alarm():
    """Makes Ctrl-C of the timer's signal."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


class Loud:
    """Sends the signal while Python frees it, where errors are ignored."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_python_would_ignore_comes_again():
    with handled(), interruption.raising(), pytest.raises(Interrupted):
        freed_and_waited_for([Loud()])


def freed_and_waited_for(held: list[Loud]) -> None:
    held.clear()
    time.sleep(5)
