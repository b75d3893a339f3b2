"""The walks of docs/extending.md, as they stand, in a copy of the package: each extension works, and touches few files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxqat
from onnxqat.cli import app
from onnxqat.graph import io, qdq
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of
from tests.models import batches, model, outputs, random
from tools import run_page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
DENSE = model("(float[N,16] x) => (float[N,4] y) { y = MatMul(x, w) }", w=random(16, 4))
#: By the heading of the walk, how many files it may touch.
FILES = {
    "The gradient of an operator": 2,
    "A pattern": 2,
    "A target": 1,
    "A named loss": 1,
    "A range estimator": 1,
}
#: What the package has, and a walk adds: function and row, which the copy loses before.
TAKEN_OUT = ("onnxqat/autodiff/rules/activations.py", "leaky_relu_gradient")


def steps(walk: str) -> list[run_page.Block]:
    """Blocks of a walk that are parts of the package."""
    headings = PAGE.read_text(encoding="utf-8").splitlines()
    start = headings.index(f"## {walk}") + 1
    end = next(n for n, line in enumerate(headings[start:], start) if line.startswith("## "))
    return [b for b in run_page.blocks(PAGE) if start < b.line <= end and b.of_package]


def take(block: run_page.Block, folder: Path) -> None:
    """Changes the copy of the package as the block says: a new file, more functions of a file, or lines of it."""
    path = folder / str(block.title)
    if block.kind == "diff":
        lines = block.text.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        path.write_text(_replaced(path.read_text(), before, after))
    elif path.exists():
        functions = re.search(r"^(def|class|@)", text := path.read_text(), re.M).start()
        path.write_text(f"{text[:functions]}{block.text}\n\n{text[functions:]}")
    else:
        path.write_text(block.text)


def _replaced(text: str, before: str, after: str) -> str:
    assert text.count(before) == 1, before
    return text.replace(before, after)


def range_estimator() -> None:
    """Four root mean squares of a value whose largest is far beyond."""
    x = random(64, 16, scale=1.0)
    x[0, 0] = 1000
    reach = 4 * np.sqrt(np.square(x, dtype=np.float64).mean())
    config = onnxqat.Config(activation_range="rms", weight_range="rms")
    (_, found) = qdq.quantizers(ir.from_proto(onnxqat.insert(DENSE, [{"x": x[:9]}, {"x": x[9:]}], config=config)))
    np.testing.assert_allclose(255 * found.scales, reach - x.min(), rtol=1e-3)


def gradient() -> None:
    """The gradient of LeakyRelu, whose row the copy has lost."""
    net = model("(float[4] x) => (float[4] y) { y = LeakyRelu<alpha=0.25>(x) }")
    _, found = onnxqat.gradients(net, {"x": np.array([-2, -1, 1, 2], np.float32)}, ["x"])
    np.testing.assert_array_equal(found["x"], np.array([0.25, 0.25, 1, 1], np.float32))


def pattern() -> None:
    """Where between two layers, for which ONNX Runtime has an integer kernel."""
    nodes = "a = MatMul(x, u) b = MatMul(x, v) c = Where(m, a, b) y = MatMul(c, w)"
    weights = {name: random(16, 16, seed=number) for number, name in enumerate("uvw")}
    net = model(f"(float[N,16] x) => (float[N,16] y) {{ {nodes} }}", m=np.arange(16) % 2 == 0, **weights)
    assert kinds(net, "ort-cpu") == {"MatMul": {"integer"}, "Where": {"integer"}}


def target() -> None:
    """A target of activations with the zero point in the middle, of which the command line knows."""
    config = onnxqat.Config(target="my-npu")
    _, found = qdq.quantizers(ir.from_proto(onnxqat.insert(DENSE, batches(DENSE), config=config)))
    assert (found.is_signed, found.zero_points.tolist()) == (False, 128)
    assert kinds(DENSE, "my-npu") == {"MatMul": {"integer"}}
    assert "my-npu" in CliRunner().invoke(app, ["insert", "--help"]).output


def kinds(net: onnx.ModelProto, target: str) -> dict[str, set[str]]:
    """Kinds of the kernels that execute each operator, once it is inserted for a target and folded."""
    deployed = io.load(onnxqat.fold(onnxqat.insert(net, batches(net), config=onnxqat.Config(target=target))))
    with opened("ort") as host:
        kernels = kernels_of(host, deployed)
    return {op: {one.kind for one in kernels if one.op_type == op} for op in {one.op_type for one in kernels}}


def named_loss() -> None:
    """Huber's loss of a quantized model."""
    x, label = random(64, 16, scale=4.0), np.zeros((64, 4), np.float32)
    quantized = onnxqat.insert(DENSE, [{"x": x}])
    loss, _ = onnxqat.Trainer(quantized, loss="huber").gradients({"x": x, "label": label})
    (answers,) = outputs(quantized, {"x": x})
    d = np.abs(answers)
    np.testing.assert_allclose(loss, np.where(d <= 1, d * d / 2, d - 0.5).mean(), rtol=1e-4)


@pytest.mark.parametrize("walk", FILES)
def test_walk_touches_few_files(walk):
    touched = {block.title for block in steps(walk)}
    assert 1 <= len(touched) <= FILES[walk], touched


def test_walks_are_complete(tmp_path):
    shutil.copytree(ROOT / "onnxqat", tmp_path / "onnxqat")
    file, function = TAKEN_OUT
    without = re.sub(rf"^def {function}.*?(?=^def)", "", (ROOT / file).read_text(), flags=re.M | re.S)
    (tmp_path / file).write_text(re.sub(rf".*\({function}\),\n", "", without))
    for walk in FILES:
        for block in steps(walk):
            take(block, tmp_path)
    checks = "gradient, pattern, target, named_loss, range_estimator"
    program = f"from tests.test_extending import *; [check() for check in ({checks},)]"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
