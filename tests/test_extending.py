"""The walks of docs/extending.md, as they stand, in a copy of the package: each extension works, and touches few files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import onnxqat
from onnxqat.cli import app
from onnxqat.graph import qdq
from tests.models import batches, model, random
from tools import run_page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
DENSE = model("(float[N,16] x) => (float[N,4] y) { y = MatMul(x, w) }", w=random(16, 4))
#: By the heading of the walk, how many files it may touch.
FILES = {"A target": 1, "A range estimator": 1}


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


def target() -> None:
    """A target without convolutions, of which the command line knows."""
    layers = "(float[N,3,8,8] x) => (float[N,4] y) { c = Conv(x, k) f = Flatten(c) y = MatMul(f, w) }"
    net = model(layers, k=random(1, 3, 3, 3), w=random(36, 4))
    rows = batches(net)
    quantized = onnxqat.insert(net, rows, config=onnxqat.Config(target="my-npu"))
    (left,) = [n for n in quantized.graph.node if n.op_type == "Conv"]
    assert [p.value for p in left.metadata_props if p.key == "onnxqat.float"] == [
        "my-npu has no integer kernel for Conv"
    ]
    report = onnxqat.verify(quantized, onnxqat.fold(quantized), rows, metric="psnr")
    assert [kernel.op_type for kernel in report.kernels if kernel.kind == "integer"] == ["MatMul"]
    assert "my-npu" in CliRunner().invoke(app, ["insert", "--help"]).output


@pytest.mark.parametrize("walk", FILES)
def test_walk_touches_few_files(walk):
    touched = {block.title for block in steps(walk)}
    assert 1 <= len(touched) <= FILES[walk], touched


def test_walks_are_complete(tmp_path):
    shutil.copytree(ROOT / "onnxqat", tmp_path / "onnxqat")
    for walk in FILES:
        for block in steps(walk):
            take(block, tmp_path)
    checks = "target, range_estimator"
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
