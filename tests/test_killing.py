"""A run killed with SIGKILL, over and over, and resumed each time ends with bit-identical results."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import onnxqat
from models import fashion_mnist
from tests import fashion
from tests.processes import started

MODELS = Path(__file__).parents[1] / "models"
#: Where a run is killed, in turn: so long after its first checkpoint, or in the middle of writing one.
MOMENTS = [0.0, "while writing", 0.05, "while writing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killing")
    config = onnxqat.Config(weight_bits=4, activation_bits=4)
    qdq = onnxqat.insert(MODELS / "separable.onnx", fashion_mnist.calibration_nhwc(), config)
    onnxqat.save(qdq, folder / "qdq.onnx")
    fashion.write(folder, train=slice(128), validation=slice(128, 160))
    return folder


def command(folder, output, *options):
    data = ["--data", folder / "train.npz", "--validation", folder / "validation.npz", "--batch-size", "8"]
    settings = ["--epochs", "2", "--lr", "1e-3", "--threads", "1", "-o", folder / output]
    return [sys.executable, "-m", "onnxqat", "train", folder / "qdq.onnx", *data, *settings, *options]


def killed(arguments, checkpoints, moment):
    """Starts a run and kills it; returns whether it was writing then."""
    before = {path.name for path in checkpoints.glob("*.safetensors")}
    with started(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and {path.name for path in checkpoints.glob("*.safetensors")} <= before:
            time.sleep(0.001)
        if moment == "while writing":
            while process.poll() is None and not list(checkpoints.glob(".*.tmp")):
                pass
        else:
            time.sleep(moment)
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    return bool(list(checkpoints.glob(".*.tmp")))


@pytest.mark.slow
def test_a_run_killed_over_and_over_ends_as_the_uninterrupted_one(folder):
    subprocess.run(command(folder, "whole.onnx"), check=True, capture_output=True)
    checkpoints = folder / "checkpoints"
    every = ["--checkpoint", checkpoints, "--checkpoint-every", "1"]
    writing = killed(command(folder, "killed.onnx", *every), checkpoints, MOMENTS[0])
    for moment in MOMENTS[1:]:
        writing |= killed(command(folder, "killed.onnx", *every, "--resume"), checkpoints, moment)
    assert writing, "none of the kills hit a write; the test shows less than it says"
    assert not (folder / "killed.onnx").exists()
    subprocess.run(command(folder, "killed.onnx", *every, "--resume"), check=True, capture_output=True)
    assert (folder / "killed.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
    started = {i.name: i.raw_data for i in onnx.load(folder / "qdq.onnx").graph.initializer}
    ended = {i.name: i.raw_data for i in onnx.load(folder / "killed.onnx").graph.initializer}
    assert sum(started[name] != ended[name] for name in started) > 60
    assert not list(checkpoints.glob(".*"))
    assert len(list(checkpoints.iterdir())) == 2
