"""Files of several processes are written by one: checkpoints, numbers, event files; also where one is killed."""

import json
import os
import random
import re
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch.distributed.run
import typer.main

import onnxqat
from onnxqat.cli import app
from onnxqat.training.resume import checkpoint_files
from tests.models import model
from tests.processes import started
from tests.test_distributed import TORCHRUN
from tests.training.test_trainer import BODY, WEIGHTS, batches

ROOT = Path(__file__).parents[1]
STEPS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    data = batches(5, rows=12)
    onnxqat.save(onnxqat.insert(model(BODY, **WEIGHTS), [{"x": b["x"]} for b in data]), folder / "qdq.onnx")
    np.savez(folder / "data.npz", **{name: np.concatenate([b[name] for b in data]) for name in ("x", "label")})
    return folder


def command(folder, output, *options):
    data = ["--data", folder / "data.npz", "--batch-size", "12", "--epochs", str(STEPS // 5), "--lr", "1e-3"]
    arguments = ["train", folder / "qdq.onnx", *data, "--threads", "1", "-o", folder / output, *options]
    return [*TORCHRUN, "-m", "onnxqat", *map(str, arguments)]


def steps(log):
    """Numbers of the steps that a log holds, in its order."""
    return [record["step"] for record in map(json.loads, log.read_text().splitlines()) if "step" in record]


def watched(launcher, checkpoints, until):
    """Looks at a folder of checkpoints until a condition holds or the run ends; yields its highest number each time."""
    while launcher.poll() is None and not until():
        yield max((checkpoint_files._number(path) for path in checkpoint_files.numbered(checkpoints)), default=0)
        time.sleep(0.002)


def process_of(rank, launcher):
    """Process id of a rank that a launcher has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        if parent == str(launcher) and b"RANK=%d" % rank in environment:
            return int(path.name)
    raise AssertionError(f"no process has rank {rank}")


@pytest.mark.slow
def test_processes_killed_at_random_write_as_one_does_and_lose_nothing(folder):
    """First the one that writes is killed, then the other one."""
    subprocess.run(command(folder, "whole.onnx"), cwd=ROOT, check=True, capture_output=True, timeout=300)
    generator = random.Random(5)
    checkpoints, log, board = (folder / name for name in ("checkpoints", "log.jsonl", "board"))
    options = ["--checkpoint", checkpoints, "--checkpoint-every", "1", "--log-file", log, "--tensorboard", board]
    killed, parts, highest = command(folder, "killed.onnx", *options), [], []
    kills = [(0, generator.randrange(5, 20)), (1, generator.randrange(25, 40))]
    for rank, target in kills:
        with started(killed, cwd=ROOT, stderr=subprocess.PIPE) as run:
            highest += watched(
                run, checkpoints, lambda target=target: log.exists() and (steps(log) or [0])[-1] >= target
            )
            assert run.poll() is None, "the run ended before it could be killed"
            os.kill(process_of(rank, run.pid), signal.SIGKILL)
            errors = run.communicate(timeout=300)[1].decode()
        assert re.search("error: .*another process of the run has died.*--resume", errors)
        parts.append(steps(log)[sum(map(len, parts)) :])
        killed = command(folder, "killed.onnx", *options, "--resume")
    subprocess.run(killed, cwd=ROOT, check=True, capture_output=True)
    parts.append(steps(log)[sum(map(len, parts)) :])
    assert (folder / "killed.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
    assert highest == sorted(highest), "a checkpoint has been deleted before the next was there"
    for part in parts:
        assert part == list(range(part[0], part[0] + len(part)))
    for before, after in pairwise(parts):
        # a step may be written before the checkpoint behind it, and is then done again
        assert 1 <= after[0] <= before[-1] + 1
    assert parts[-1][-1] == STEPS
    assert len(list(board.iterdir())) == len(parts)
    assert len(list(checkpoints.iterdir())) == 2


@pytest.mark.slow
def test_a_folder_that_holds_another_runs_checkpoints_ends_all_processes_with_one_message(folder):
    other = folder / "other"
    other.mkdir()
    (other / "checkpoint-000007.safetensors").write_bytes(b"")
    options = ["--checkpoint", other]
    run = subprocess.run(
        command(folder, "refused.onnx", *options), cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert "holds checkpoints of an earlier run" in line
    assert [path.name for path in other.iterdir()] == ["checkpoint-000007.safetensors"]


@pytest.mark.parametrize("stage", ["insert", "train", "run"])
def test_torchrun_lets_every_option_through(stage):
    parser = torch.distributed.run.get_args_parser()
    for parameter in typer.main.get_command(app).commands[stage].params:
        for option in parameter.opts:
            given = ["--standalone", "-m", "onnxqat", stage, "model.onnx", option, "3"]
            assert parser.parse_args(given).training_script_args[-2:] == [option, "3"]
