"""Training as files: what the how-to's programs make of them, in stock onnxruntime and under node, is what `Trainer` makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.errors import InputError
from onnxqat.runtime import run_exactly
from onnxqat.training.portable.flat import GRADIENTS, PARAMETERS
from tests import stock
from tests.models import model, random
from tools import run_page

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "devices.md"
NODE, NODE_MODULES = shutil.which("node"), Path(os.environ.get("ONNXQAT_NODE_MODULES", "node_modules")).absolute()
STEPS, ROWS = 40, 32
TEXT = (
    "(float[N,2,6,6] image) => (float[N,4] y) { c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (image, w, b)"
    " r = Relu (c) p = MaxPool <kernel_shape=[2,2]> (r) f = Flatten (p) y = Gemm (f, v, d) }"
)


@pytest.fixture(scope="module")
def qdq():
    proto = model(TEXT, w=random(8, 2, 3, 3), b=random(8), v=random(32, 4), d=random(4))
    return onnxqat.insert(proto, [{"image": data()["image"]}])


def data():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 64)
    image = rng.normal(size=(64, 2, 6, 6)) + label[:, None, None, None] * 0.2
    return {"image": image.astype(np.float32), "label": label}


@pytest.fixture
def folder(qdq, tmp_path, monkeypatch):
    """The run, the data and the programs of the page."""
    monkeypatch.chdir(tmp_path)
    onnxqat.export_training(qdq, "device")
    np.savez("train.npz", **data())
    data()["image"].tofile("image.bin")
    data()["label"].astype("<i8").tofile("label.bin")
    for block in run_page.blocks(PAGE):
        if block.title is not None:
            Path(block.title).write_text(block.text)
    return tmp_path


@pytest.fixture(scope="module")
def expected(qdq):
    """Losses of `Trainer` on the batches of the page's programs."""
    trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-3), threads=1)
    starts = [ROWS * step % (64 - ROWS + 1) for step in range(STEPS)]
    return [trainer.step({name: array[start:][:ROWS] for name, array in data().items()}) for start in starts]


def named(facts, flat):
    """Parts of a flat array by name, as the JSON says."""
    places = facts["parameters"]["initializers"]
    return {one["name"]: flat[one["offset"] :][: int(np.prod(one["shape"]))].reshape(one["shape"]) for one in places}


def losses(output):
    return [float(line.split()[1]) for line in output.splitlines()]


def ran(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return losses(done.stdout)


@stock.needs_stock
@pytest.mark.usefixtures("folder")
def test_onnxruntime_alone_trains_as_trainer_does(expected):
    np.testing.assert_allclose(ran(stock.PYTHON, "train.py"), expected, rtol=2e-3)
    assert np.fromfile("trained.bin", "<f4").shape == np.fromfile("device/parameters.bin", "<f4").shape


@pytest.mark.skipif(
    NODE is None or not (NODE_MODULES / "onnxruntime-web").is_dir(),
    reason="node or onnxruntime-web is not there; `make test` installs the latter where npm can",
)
def test_node_trains_as_trainer_does(folder, expected):
    (folder / "node_modules").symlink_to(NODE_MODULES)
    np.testing.assert_allclose(ran(NODE, "train.mjs", "device", "2", "6", "6"), expected, rtol=2e-3)


@pytest.mark.parametrize(
    "optimizer",
    [onnxqat.AdamW(lr=1e-2, weight_decay=0.1), onnxqat.AdamW(relative=True), onnxqat.SGD(lr=0.1, weight_decay=0.01)],
    ids=["AdamW", "relative", "SGD"],
)
def test_one_step_is_that_of_the_trainer(optimizer, qdq, tmp_path):
    onnxqat.export_training(qdq, tmp_path, optimizer=optimizer)
    facts = json.loads((tmp_path / "training.json").read_text())
    start = np.fromfile(tmp_path / "parameters.bin", "<f4")
    batch = {"image": data()["image"], facts["training"]["labels"]["label"]: data()["label"]}
    found = run_exactly(onnx.load(tmp_path / "training.onnx"), {**batch, PARAMETERS: start})
    moments = {name: np.zeros_like(start) for name in facts["optimizer"]["moments"]}
    numbers = {"learning_rate": np.float32(optimizer.lr), "step": np.float32(1)}
    feeds = {PARAMETERS: start, GRADIENTS: found[GRADIENTS], **moments, **numbers}
    after = run_exactly(onnx.load(tmp_path / "optimizer.onnx"), feeds)["new_parameters"]
    trainer = onnxqat.Trainer(qdq, optimizer=optimizer, threads=1)
    assert trainer.step(data()) == pytest.approx(float(found[facts["training"]["loss"]]), rel=1e-5)
    for name, array in named(facts, after).items():
        np.testing.assert_allclose(array, trainer.parameters[name], rtol=1e-3, atol=1e-5)


def test_files_are_valid_models_of_standard_operators(qdq, tmp_path):
    onnxqat.export_training(qdq, tmp_path)
    for name in ("training", "optimizer", "evaluation"):
        proto = onnx.load(tmp_path / f"{name}.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert {imported.domain for imported in proto.opset_import} == {""}


def test_evaluation_gives_the_outputs_of_the_model(qdq, tmp_path):
    onnxqat.export_training(qdq, tmp_path)
    facts = json.loads((tmp_path / "training.json").read_text())["evaluation"]
    feeds = {PARAMETERS: np.fromfile(tmp_path / "parameters.bin", "<f4"), "image": data()["image"]}
    found = run_exactly(onnx.load(tmp_path / facts["file"]), {**feeds, facts["labels"]["label"]: data()["label"]})
    np.testing.assert_allclose(found["y"], run_exactly(qdq, {"image": data()["image"]})["y"], rtol=1e-5, atol=1e-6)


def test_a_loss_with_a_teacher_is_refused(qdq, tmp_path):
    with pytest.raises(InputError, match="loss: learns from a teacher, which cannot be exported"):
        onnxqat.export_training(qdq, tmp_path, loss="distill")


def test_a_folder_that_cannot_be_made_is_named(qdq, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken: cannot be made"):
        onnxqat.export_training(qdq, tmp_path / "taken")
