import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from rich.table import Table

import onnxqat
from onnxqat.terminal.plain import Terminal, cells
from onnxqat.terminal.progress import duration
from onnxqat.training.callbacks import ready_made
from tests.models import model, random

LONG_NAME = (
    "/encoder/layers.0/attention/self/query/projection/MatMul_output_0/quantized/for/integer/kernels/of/the/runtime"
)
NET = model(
    "(float[N,8] x) => (float[N,3] y) { a = MatMul(x, w)\n b = Relu(a)\n c = Erf(b)\n y = MatMul(c, v) }",
    w=random(8, 8),
    v=random(8, 3),
)
next(node for node in NET.graph.node if node.op_type == "Erf").name = LONG_NAME


@pytest.fixture
def files(tmp_path):
    """A float model, its data and its Q/DQ model."""
    x = random(64, 8, scale=1.0)
    np.savez(tmp_path / "a.npz", x=x, label=np.arange(64) % 3)
    onnx.save(NET, tmp_path / "m.onnx")
    onnxqat.save(onnxqat.insert(NET, [x]), tmp_path / "q.onnx")
    return tmp_path


def test_inspect_writes_what_it_shows_for_programs(call, files):
    status, _, _ = call("inspect", files / "q.onnx", "--json", files / "i.json")
    found = json.loads((files / "i.json").read_text())
    assert status == 0
    assert {(one["value"], one["kind"], one["bits"]) for one in found["quantizers"]} >= {
        ("w", "weight", 8),
        ("x", "activation", 8),
    }
    assert [one["node"] for one in found["floats"]] == [LONG_NAME]
    assert sum(node["operator"] == "QuantizeLinear" for node in found["nodes"]) == len(found["quantizers"])


def test_inspect_into_a_pipe_keeps_each_row_on_a_line(files):
    command = [sys.executable, "-m", "onnxqat", "inspect", str(files / "q.onnx")]
    variables = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    said = subprocess.run(command, capture_output=True, check=True, encoding="utf-8", env=variables).stdout
    (line,) = [line for line in said.splitlines() if LONG_NAME in line]
    assert "no integer kernel" in line


def test_long_names_are_folded_on_a_terminal():
    table = Table("node", "why")
    table.add_row(*cells(LONG_NAME, "it is long"))
    console = Terminal(force_terminal=True, width=60, record=True)
    console.print(table)
    letters = "".join(part.split("│")[1].strip() for part in console.export_text().splitlines() if "│" in part)
    assert LONG_NAME in letters


@pytest.mark.parametrize("command", ["insert", "run"])
def test_dry_run_shows_what_would_be_quantized_and_writes_nothing(call, files, command):
    before = sorted(files.iterdir())
    data = "--calibration" if command == "insert" else "--data"
    options = ("--weight-bits", 4, "--dry-run", "-o", files / "o.onnx")
    status, said, log = call(command, files / "m.onnx", data, files / "a.npz", *options)
    assert (status, log) == (0, "")
    weights = [line for line in said.splitlines() if "weight" in line]
    assert len(weights) == 2
    assert LONG_NAME in said
    assert "scale" not in said
    assert sorted(files.iterdir()) == before
    assert call(command, files / "m.onnx", data, files / "none.npz", *options)[0] == 2


def test_dry_run_says_that_16_bits_are_measured_later(call, files):
    options = ("--sixteen", "auto", "--dry-run", "-o", files / "o.onnx")
    status, said, log = call("insert", files / "m.onnx", "--calibration", files / "a.npz", *options)
    assert status == 0
    assert "which activations have 16 bits is measured" in log
    assert "16 bits" not in said


def test_time_that_training_takes_is_told_after_a_few_steps(call, files, monkeypatch):
    monkeypatch.setattr(ready_made, "LONG", -1.0)
    call("train", files / "q.onnx", "--data", files / "a.npz", "--batch-size", 8, "--epochs", 1, "-o", files / "o.onnx")
    _, _, log = call(
        "train", files / "q.onnx", "--data", files / "a.npz", "--batch-size", 8, "--epochs", 1, "-o", files / "o.onnx"
    )
    assert "training: 3 more steps, about 0 s" in log


@pytest.mark.parametrize(("seconds", "words"), [(3, "3 s"), (119, "119 s"), (150, "2 min"), (7300, "2 h")])
def test_times_are_said_in_the_unit_that_people_use(seconds, words):
    assert duration(seconds) == words
