"""The command line from end to end on a real model, as real calls; what goes wrong is in `test_bad_input`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxqat
from models import fashion_mnist
from onnxqat import pipeline
from onnxqat.pipeline import recovery, request
from tests.models import model, random

ROOT = Path(__file__).parents[2]
SEPARABLE = str(ROOT / "models" / "separable.onnx")
COMMANDS = ["insert", "reconstruct", "train", "fold", "eval", "verify", "run", "check", "inspect", "export"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """64 training images in a file, 100 test images in a folder of two."""
    folder = tmp_path_factory.mktemp("data")
    train = fashion_mnist.calibration_nhwc()
    test = fashion_mnist.test_nhwc()
    np.savez(folder / "train.npz", image=fashion_mnist.standardise(train.images[:64], 3), label=train.labels[:64])
    (folder / "test").mkdir()
    for part in range(2):
        rows = slice(50 * part, 50 * part + 50)
        images = fashion_mnist.standardise(test.images[rows], 3)
        np.savez(folder / "test" / f"{part}.npz", image=images, label=test.labels[rows])
    return folder


def test_stages_follow_each_other_through_files(call, data, tmp_path):
    qdq, trained, deployed, report = (tmp_path / f"{n}" for n in ("q.onnx", "t.onnx", "d.onnx", "r.json"))
    train = data / "train.npz"
    assert call("insert", SEPARABLE, "--calibration", train, "--weight-bits", 4, "-o", qdq)[0] == 0
    status, _, log = call("train", qdq, "--data", train, "--validation", data / "test", "--epochs", 2, "-o", trained)
    assert status == 0
    assert "epoch 2/2: train loss" in log
    assert call("fold", trained, "-o", deployed)[0] == 0
    status, out, _ = call("verify", trained, deployed, "--data", data / "test", "--json", report)
    assert status == 0
    assert "layers on integer kernels" in out
    found = json.loads(report.read_text())
    assert found["weighted_nodes"] == {"integer": 16, "total": 16}
    assert found["samples"] == 100
    assert found["agreement"] >= 0.99
    status, out, _ = call("eval", deployed, "--data", data / "test")
    assert (status, out) == (0, f"accuracy {found['deployed']:.4f}\n")
    before, after = (onnx.load(path).graph.initializer for path in (qdq, trained))
    assert [t.name for t in before] == [t.name for t in after]
    assert any(a.raw_data != b.raw_data for a, b in zip(before, after, strict=True))


def test_run_writes_the_deployed_model_and_a_summary(call, data, tmp_path):
    deployed, report = tmp_path / "d.onnx", tmp_path / "r.json"
    options = ["--data", data / "train.npz", "--test", data / "test", "--epochs", 1, "--json", report, "-o", deployed]
    status, out, _ = call("run", SEPARABLE, *options)
    assert status == 0
    assert [line.split("│")[1].strip() for line in out.splitlines() if "%" in line and "│" in line][-4:] == [
        "float",
        "inserted, deployed",
        "trained",
        "trained, deployed",
    ]
    found = json.loads(report.read_text())
    labels, images = (np.concatenate([batch[key] for batch in _batches(data / "test")]) for key in ("label", "image"))
    (answers,) = onnxruntime.InferenceSession(deployed, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    assert found["deployed"] == pytest.approx((answers.argmax(1) == labels).mean())
    assert found["size"]["float_model"] == Path(SEPARABLE).stat().st_size
    assert found["size"]["deployed"] == deployed.stat().st_size


def test_run_calibrates_on_a_thousand_samples_of_the_training_data(data, monkeypatch):
    seen = []

    def stop(model, calibration, config, **_):
        seen.append(config.activation_range.samples)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "insert", stop)
    train = str(data / "train.npz")
    for calibration in (None, train):
        with pytest.raises(InterruptedError):
            pipeline.run(
                SEPARABLE,
                request.Data(train, calibration),
                onnxqat.Config(),
                request.Training(),
                request.Judge(),
                recovery.Keeping(lambda _: None),
            )
    assert seen == [1024, None]


def test_reconstruction_is_a_command_or_a_part_of_insert_and_run(call, tmp_path):
    names = ("model.onnx", "data.npz", "q.onnx", "r.onnx", "t.onnx")
    float_model, data, qdq, after, together = (tmp_path / name for name in names)
    net = model("(float[N,8] x) => (float[N,4] y) { a = Gemm(x, w) y = Gemm(a, v) }", w=random(8, 8), v=random(8, 4))
    onnx.save(net, float_model)
    np.savez(data, x=random(64, 8, scale=1.0))
    insertion = ["insert", float_model, "--calibration", data, "--weight-bits", 4]
    assert call(*insertion, "-o", qdq)[0] == 0
    status, _, log = call("reconstruct", qdq, "--float", float_model, "--data", data, "-o", after)
    assert status == 0
    assert "reconstructed 1 of 1 blocks" in log
    assert "the data holds 64 samples" in log
    assert call(*insertion, "--reconstruct", "-o", together)[0] == 0
    assert onnx.load(together) == onnx.load(after)
    status, _, log = call(
        "run", float_model, "--data", data, "--weight-bits", 4, "--reconstruct", "--loss", "distill", "--steps", 1, "-o", together
    )  # fmt: skip
    assert status == 0
    assert "reconstructed 1 of 1 blocks" in log


def test_standard_output_takes_a_model_and_messages_go_to_standard_error(call, data, tmp_path):
    qdq = tmp_path / "q.onnx"
    call("insert", SEPARABLE, "--calibration", data / "train.npz", "-o", qdq)
    command = [sys.executable, "-m", "onnxqat", "fold", qdq, "-o", "-"]
    folded = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert onnx.load_from_string(folded.stdout).graph.node
    assert folded.stderr.endswith(b"\nwrote -\n")


def test_settings_of_the_call_go_over_those_of_the_file(call, data, tmp_path):
    config, qdq = tmp_path / "config.json", tmp_path / "q.onnx"
    config.write_text('{"target": "openvino", "weight_bits": 4, "first_last_bits": null}')
    train = data / "train.npz"
    assert call("insert", SEPARABLE, "--calibration", train, "--config", config, "--weight-bits", 3, "-o", qdq)[0] == 0
    status, out, _ = call("inspect", qdq)
    assert status == 0
    weights = [line.split("│")[3:5] for line in out.splitlines() if "│ weight" in line]
    assert len(weights) == 16
    assert {(bits.strip(), codes.strip()) for bits, codes in weights} == {("3", "-3 … 3")}


def test_configuration_may_be_one_of_nncf(call, data, tmp_path):
    config, qdq = tmp_path / "nncf.json", tmp_path / "q.onnx"
    algorithm = '"algorithm": "quantization", "initializer": {"batchnorm_adaptation": {"num_bn_adaptation_samples": 0}}'
    config.write_text(f'{{ // of the classifier\n "compression": {{{algorithm}}} }}')
    assert call("insert", SEPARABLE, "--calibration", data / "train.npz", "--config", config, "-o", qdq)[0] == 0
    assert "-64 … 63" in call("inspect", qdq)[1]
    config.write_text('{"compression": {"algorithm": "quantization", "batch_size": 8}}')
    status, _, error = call("insert", SEPARABLE, "--calibration", data / "train.npz", "--config", config, "-o", qdq)
    assert status == 2
    fact = "NNCF configuration: compression.batch_size: no such key; check its spelling, or remove it"
    assert error == f"error: {config}: {fact}\n"


def test_inspect_says_what_stays_in_float_and_what_can_be_trained(call, data, tmp_path):
    qdq = tmp_path / "q.onnx"
    call("insert", SEPARABLE, "--data", data / "train.npz", "-o", qdq)
    assert "has no integer kernel for Softmax" in call("inspect", qdq)[1]
    status, out, _ = call("inspect", "--trainable", SEPARABLE)
    assert status == 0
    assert "Conv" in out
    assert "Softmax" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert "Usage" in out
    assert len(out.splitlines()) > 5


def test_help_has_whole_names_and_a_part_for_each_group_in_a_narrow_pipe():
    command = [sys.executable, "-m", "onnxqat", "run", "--help"]
    narrow = os.environ | {"COLUMNS": "80"}
    help_text = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=narrow).stdout
    assert max(len(line) for line in help_text.splitlines()) <= 80
    assert "--quantize-activations / --float-activations" in help_text
    parts = [line for line in help_text.splitlines() if re.fullmatch(r"[A-Z].*:", line)]
    assert parts[:4] == ["Arguments:", "Options:", "Reading of data:", "Quantization:"]
    assert {"Training:", "Execution:", "Logs and checkpoints:", "Labels:", "Judging:"} <= set(parts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["insert", "--nope"], "No such option: --nope"),
        (["nope"], "No such command 'nope'"),
        (["fold", SEPARABLE], "Missing option '-o' / '--output'"),
        (["train", SEPARABLE, "--epochs", "many"], "Invalid value for '--epochs'"),
    ],
    ids=["option", "command", "missing", "type"],
)
def test_a_wrong_call_is_one_line_and_status_2(call, arguments, words):
    status, _, err = call(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    command = [sys.executable, "-m", "onnxqat", "fold", SEPARABLE, "-o", str(tmp_path / "d.onnx"), "--debug"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_loss_that_is_not_finite_ends_with_status_1_and_the_last_good_model(call, data, tmp_path):
    qdq, trained = tmp_path / "q.onnx", tmp_path / "t.onnx"
    call("insert", SEPARABLE, "--calibration", data / "train.npz", "-o", qdq)
    options = ["--data", data / "train.npz", "--epochs", 200, "--lr", 1e30, "--batch-size", 8, "-o", trained]
    status, _, err = call("train", qdq, *options)
    assert status == 1
    assert "not finite" in err.splitlines()[-1]
    assert "lower the learning rate" in err.splitlines()[-1]
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in onnx.load(trained).graph.initializer)


def _batches(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def test_version_is_the_one_of_the_package(call):
    assert call("--version") == (0, f"onnxqat {onnxqat.__version__}\n", "")


def test_a_reader_that_has_gone_ends_the_call_without_a_word():
    with subprocess.Popen(
        [sys.executable, "-m", "onnxqat", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
