"""Bad input at the command line: exit status 2, one line, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxqat.names import TARGETS
from tests import classifier
from tests.classifier import LABELS, NET, ROWS, WEIGHTS
from tests.command_line import status_of
from tests.models import model, random


class Desk:
    """A folder with a float model, its Q/DQ model and data, and a command line to try on broken copies of them.

    Attributes:
        folder: where the good files are.
        work: where broken files go.
        output: the file that no failing command may write.
    """

    def __init__(self, folder: Path, work: Path, run: Callable[..., tuple[int, str]]) -> None:
        self.folder, self.work, self._run = folder, work, run
        self.output = work / "out" / "out.onnx"
        self.output.parent.mkdir()

    @property
    def float_model(self) -> Path:
        return self.folder / "float.onnx"

    @property
    def qdq(self) -> Path:
        return self.folder / "qdq.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    def model(self, proto: onnx.ModelProto) -> Path:
        return self.file("broken.onnx", proto.SerializeToString())

    def file(self, name: str, content: bytes) -> Path:
        path = self.work / name
        path.write_bytes(content)
        return path

    def arrays(self, **arrays: np.ndarray) -> Path:
        path = self.work / "data.npz"
        np.savez(path, **arrays)
        return path

    def insert(self, model: Path | None = None, data: object = None, *more: object) -> tuple[int, str]:
        return self.run(
            "insert", model or self.float_model, "--calibration", data or self.data, "-o", self.output, *more
        )

    def train(self, model: Path | None = None, data: object = None, *more: object) -> tuple[int, str]:
        return self.run(
            "train", model or self.qdq, "--data", data or self.data, "-o", self.output, "--epochs", 1, *more
        )

    def run(self, *arguments: object) -> tuple[int, str]:
        return self._run(*map(str, arguments))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return classifier.write(tmp_path_factory.mktemp("good"))


@pytest.fixture
def desk(good, tmp_path, capsys) -> Desk:
    def run(*arguments: str) -> tuple[int, str]:
        return status_of(*arguments), capsys.readouterr().err

    return Desk(good, tmp_path, run)


def refused(desk: Desk, result: tuple[int, str]) -> str:
    """The one line of a refusal, which left nothing behind and did not harm what was there."""
    status, said = result
    assert "Traceback" not in said
    *notes, line = said.strip().splitlines()
    assert line.startswith("error: ")
    assert not [note for note in notes if "error" in note.lower()]
    assert status == 2
    assert list(desk.output.parent.iterdir()) == []
    return line


def test_good_input_passes(desk):
    """The commands below fail for the reason that they should."""
    assert desk.insert()[0] == 0
    assert desk.train()[0] == 0
    assert desk.run("fold", desk.qdq, "-o", desk.output)[0] == 0
    assert onnx.load(desk.output).graph.node


COMMANDS: dict[str, Callable[[Desk, Path], tuple[int, str]]] = {
    "insert": lambda desk, path: desk.insert(path),
    "train": lambda desk, path: desk.train(path),
    "fold": lambda desk, path: desk.run("fold", path, "-o", desk.output),
    "eval": lambda desk, path: desk.run("eval", path, "--data", desk.data),
    "verify": lambda desk, path: desk.run("verify", path, desk.qdq, "--data", desk.data),
    "run": lambda desk, path: desk.run("run", path, "--data", desk.data, "-o", desk.output),
    "inspect": lambda desk, path: desk.run("inspect", path),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 no model", b"hello\n", bytes(64), b"\x08\x08"],
    ids=["empty", "zip", "text", "zeros", "stub"],
)
def test_file_that_is_no_model_is_refused_by_every_command(desk, command, content):
    line = refused(desk, command(desk, desk.file("broken.onnx", content)))
    assert "broken.onnx: " in line
    assert "export the model again" in line


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_missing_model_is_refused_by_every_command(desk, command):
    assert "nowhere.onnx: no such file; check the path" in refused(desk, command(desk, desk.work / "nowhere.onnx"))


@pytest.mark.parametrize("share", [1, 20, 50, 80, 99])
@pytest.mark.parametrize("name", ["float_model", "qdq"])
def test_file_that_is_cut_off_is_refused(desk, name, share):
    content = getattr(desk, name).read_bytes()
    path = desk.file("broken.onnx", content[: len(content) * share // 100])
    command = desk.insert if name == "float_model" else desk.train
    assert "cut off" in refused(desk, command(path))


def test_opset_older_than_can_be_converted_is_refused(desk):
    proto = model("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", opset=6, w=random(8, 3))
    assert "opset 6 is older than 7" in refused(desk, desk.insert(desk.model(proto)))


def test_old_opset_that_cannot_be_converted_is_refused_with_the_operator(desk):
    scan = "Scan<num_scan_inputs=1, body=g(float[8] i) => (float[8] o) { o = Relu(i) }>(n, a)"
    proto = model(
        f"(float[N,8] x, int64[N] n) => (float[N,8] y) {{ a = MatMul(x, w) y = {scan} }}", opset=8, w=random(8, 8)
    )
    line = refused(desk, desk.insert(desk.model(proto)))
    assert "opset 8 cannot be converted to 17: Scan 'y' runs over batches" in line


@pytest.mark.parametrize("command", ["insert", "train"])
def test_new_opset_that_cannot_be_lowered_is_refused_with_the_operator(desk, command):
    body = "(float[N,8] x) => (int32[N,3] y) { a = MatMul(x, w) y = BitCast<to=6>(a) }"
    path = desk.model(model(body, opset=26, ir_version=10, w=random(8, 3)))
    line = refused(desk, COMMANDS[command](desk, path))
    assert "opset 26 cannot be lowered to 21, because of BitCast (1)" in line


def test_custom_operators_are_refused_by_name(desk):
    text = """<ir_version: 8, opset_import: ["": 17, "my": 1]> agraph (float[N,8] x) => (float[N,8] y)
        { a = my.Fancy(x) y = my.Plain(a) }"""
    line = refused(desk, desk.insert(desk.model(onnx.parser.parse_model(text))))
    assert "custom operators my::Fancy (1), my::Plain (1)" in line


def external(desk: Desk, location: str = "weights.bin", *, there: bool = True) -> Path:
    onnx.save(
        model(NET, **WEIGHTS),
        desk.work / "external.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    proto = onnx.load(desk.work / "external.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    if not there:
        (desk.work / "weights.bin").unlink()
    return desk.file("external.onnx", proto.SerializeToString())


def test_missing_external_data_is_refused(desk):
    line = refused(desk, desk.insert(external(desk, there=False)))
    assert "external data file 'weights.bin' of initializer 'w' is missing; put it beside the model" in line


def test_external_data_that_is_cut_off_is_refused(desk):
    path = external(desk)
    desk.file("weights.bin", (desk.work / "weights.bin").read_bytes()[:100])
    assert "is cut off; copy it again, whole" in refused(desk, desk.insert(path))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin"])
def test_external_data_that_escapes_the_folder_is_refused(desk, location):
    assert "is outside the model's folder" in refused(desk, desk.insert(external(desk, location)))


def test_model_without_weights_is_refused(desk):
    proto = model("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    line = refused(desk, desk.insert(desk.model(proto)))
    assert "has no weights to quantize on ort-cpu" in line


@pytest.mark.parametrize(
    ("stage", "model_name", "message"),
    [
        ("insert", "qdq", "is quantized already.*give the float model"),
        ("train", "float_model", "has no quantizers.*insert"),
        ("fold", "float_model", "has no quantizers; run `onnxqat insert` first"),
        ("run", "qdq", "is quantized already"),
    ],
)
def test_model_of_the_wrong_stage_is_refused(desk, stage, model_name, message):
    line = refused(desk, COMMANDS[stage](desk, getattr(desk, model_name)))
    assert re.search(message, line)


NAN = ROWS.copy()
NAN[3, 2] = np.nan
DATA = {
    "wrong name": ({"image": ROWS}, "holds 'image', the model takes 'x', 'label'"),
    "missing input": ({"label": LABELS}, "lacks 'x'"),
    "wrong rank": ({"x": ROWS[:, None]}, "'x' has shape [16, 1, 8], the model takes [any, 8]"),
    "wrong width": ({"x": ROWS[:, :5]}, "'x' has shape [16, 5], the model takes [any, 8]"),
    "wrong type": ({"x": ROWS.astype(np.complex64)}, "'x' has type complex64, the model takes float32"),
    "text": ({"x": np.array(["a"] * 16)}, "'x' has type <U1"),
    "no rows": ({"x": ROWS[:0]}, "no batches came"),
    "NaN": ({"x": NAN}, "'x' holds NaN or infinity"),
    "infinity": ({"x": np.full_like(ROWS, np.inf)}, "'x' holds NaN or infinity"),
    "scalar": ({"x": np.float32(1)}, "holds no arrays of rows"),
    "no arrays": ({}, "data.npz"),
}


@pytest.mark.parametrize(("arrays", "message"), DATA.values(), ids=DATA)
def test_calibration_data_that_does_not_fit_is_refused(desk, arrays, message):
    assert message in refused(desk, desk.insert(None, desk.arrays(**arrays)))


@pytest.mark.parametrize(("arrays", "message"), DATA.values(), ids=DATA)
def test_training_data_that_does_not_fit_is_refused(desk, arrays, message):
    labels = (
        {} if "label" in arrays or not arrays else {"label": LABELS[: len(np.atleast_1d(next(iter(arrays.values()))))]}
    )
    assert message in refused(desk, desk.train(None, desk.arrays(**arrays, **labels)))


LABELLED = {
    "too large": (np.full(16, 3), "label"),
    "negative": (np.full(16, -1), "label"),
    "far too large": (np.full(16, 2**40), "label"),
    "too few": (LABELS[:7], "different lengths"),
    "floats": (LABELS + 0.5, "label"),
    "one-hot": (np.eye(3, dtype=np.float32)[LABELS], "label"),
    "text": (np.array(["cat"] * 16), "label"),
}


@pytest.mark.parametrize(("labels", "message"), LABELLED.values(), ids=LABELLED)
def test_labels_that_do_not_fit_are_refused(desk, labels, message):
    assert message in refused(desk, desk.train(None, desk.arrays(x=ROWS, label=labels)))


def test_labels_that_a_loss_lacks_are_asked_for(desk):
    assert "lacks 'label'" in refused(desk, desk.train(None, desk.arrays(x=ROWS), "--loss", "cross_entropy"))


@pytest.mark.parametrize("metric", ["accuracy", "top2"])
@pytest.mark.parametrize("labels", [np.full(16, 3), np.full(16, -1), LABELS + 0.5], ids=["large", "negative", "floats"])
def test_labels_that_do_not_fit_are_refused_by_eval(desk, labels, metric):
    data = desk.arrays(x=ROWS, label=labels)
    assert "label" in refused(desk, desk.run("eval", desk.float_model, "--data", data, "--metric", metric))


@pytest.mark.parametrize("command", [["eval"], ["run", "-o"]], ids=["eval", "run"])
def test_topk_of_all_classes_is_refused_before_any_work(desk, command):
    given = [desk.output] if "-o" in command else []
    line = refused(desk, desk.run(*command, *given, desk.float_model, "--data", desk.data, "--metric", "top3"))
    assert "metric 'top3': the model has 3 classes" in line


def test_unknown_metric_is_refused(desk):
    line = refused(desk, desk.run("eval", desk.float_model, "--data", desk.data, "--metric", "beauty"))
    assert "'beauty'" in line


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}] * 16, dtype=object), label=LABELS)


@pytest.mark.parametrize("command", ["insert", "train"])
def test_pickled_arrays_are_refused_unread(desk, command):
    pickled(desk.work / "data.npz")
    line = refused(desk, getattr(desk, command)(None, desk.work / "data.npz"))
    assert "not an .npz file of plain arrays" in line


@pytest.mark.parametrize("share", [0, 30, 70, 99])
def test_data_file_that_is_cut_off_is_refused(desk, share):
    content = desk.data.read_bytes()
    path = desk.file("cut.npz", content[: len(content) * share // 100])
    assert "cut.npz: not an .npz file" in refused(desk, desk.insert(None, path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.npz", "no such file"),
        ("no_such_package:batches", "no module 'no_such_package'"),
        ("onnxqat.data:no_such_function", "has no 'no_such_function'"),
        ("onnxqat.data:", "names no function"),
        ("onnxqat.graph.io:NEWEST_OPSET", "not an iterable of batches"),
    ],
)
@pytest.mark.parametrize("command", ["insert", "train"])
def test_data_that_is_not_there_is_refused(desk, command, data, message):
    assert message in refused(desk, getattr(desk, command)(None, data))


def test_empty_folder_of_data_is_refused(desk):
    (desk.work / "batches").mkdir()
    assert "holds no .npz file" in refused(desk, desk.insert(None, desk.work / "batches"))


CONFIGS = {
    "not JSON": (b"{target: ort}", "not JSON"),
    "not an object": (b"[1]", "holds no JSON object"),
    "not text": (b"\xff\xfe\x00", "cannot be read"),
    "unknown key": (b'{"wieght_bits": 4}', "wieght_bits: no such key; check its spelling"),
    "out of range": (b'{"weight_bits": 9}', "weight_bits"),
    "wrong type": (b'{"weight_bits": "4"}', "weight_bits"),
    "rule without selector": (b'{"ignore": [{}]}', "give exactly one of name, pattern, type and scope"),
    "bad expression": (b'{"ignore": [{"pattern": "("}]}', "is not a regular expression"),
    "rule that matches nothing": (b'{"ignore": [{"name": "nothing"}]}', "matches no node"),
    "unknown target": (b'{"target": "abacus"}', "target"),
}


@pytest.mark.parametrize(("content", "message"), CONFIGS.values(), ids=CONFIGS)
def test_configuration_that_is_wrong_is_refused(desk, content, message):
    path = desk.file("config.json", content)
    assert message in refused(desk, desk.insert(None, None, "--config", path))


def test_missing_configuration_is_refused(desk):
    line = refused(desk, desk.insert(None, None, "--config", desk.work / "none.json"))
    assert "none.json: cannot be read" in line


def test_unknown_target_is_refused_with_those_that_exist(desk):
    line = refused(desk, desk.insert(None, None, "--target", "tpu"))
    assert f"target: no target is called 'tpu'; use {' or '.join(map(repr, TARGETS))}" in line


@pytest.mark.parametrize("place", ["folder", "no folder", "read-only"])
@pytest.mark.parametrize("command", ["insert", "train", "fold", "run"])
def test_output_that_cannot_be_written_is_refused_before_the_work(desk, command, place, monkeypatch):
    if place == "read-only":
        if os.geteuid() == 0:
            # root may write anywhere but where the kernel says no
            desk.output = Path("/proc/out.onnx")
        else:
            desk.output.parent.chmod(0o500)
    else:
        desk.output = {"folder": desk.work, "no folder": desk.work / "none" / "out.onnx"}[place]
    good = desk.qdq if command in ("train", "fold") else desk.float_model
    status, said = COMMANDS[command](desk, good)
    line = said.strip().splitlines()[-1]
    assert status == 2
    assert line.startswith(f"error: {desk.output}: ")


@pytest.mark.parametrize("command", ["insert", "train", "fold", "run"])
def test_an_input_or_a_file_of_another_kind_is_not_overwritten(desk, command):
    good = desk.file("good.onnx", (desk.qdq if command in ("train", "fold") else desk.float_model).read_bytes())
    before = good.read_bytes()
    link = desk.work / "link.onnx"
    link.symlink_to(good)
    program = desk.file("train.py", b"import numpy\n")
    words = {good: "is an input of this call", link: "is an input of this call", program: "is not an ONNX model"}
    for output, said in words.items():
        desk.output, out = output, desk.output
        status, line = COMMANDS[command](desk, good)
        desk.output = out
        assert status == 2
        assert line.startswith(f"error: {output}: ")
        assert said in line
    assert (good.read_bytes(), program.read_bytes()) == (before, b"import numpy\n")


def test_reports_and_logs_do_not_overwrite_data(desk):
    before = desk.data.read_bytes()
    for result in (
        desk.run("verify", desk.qdq, desk.qdq, "--data", desk.data, "--json", desk.data),
        desk.train(None, None, "--log-file", desk.data),
    ):
        assert "data.npz: " in refused(desk, result)
    assert desk.data.read_bytes() == before


def test_both_onnxruntime_packages_are_refused_with_the_repair(desk, monkeypatch):
    known = metadata.version
    monkeypatch.setattr(
        metadata,
        "version",
        lambda name: "1.32.0" if name in ("onnxruntime", "onnxruntime-training-cpu") else known(name),
    )
    for result in (desk.insert(), desk.train()):
        line = refused(desk, result)
        assert "onnxruntime and onnxruntime-training-cpu are installed side by side" in line
        assert "pip uninstall" in line


def test_what_was_there_survives_a_failure(desk):
    desk.output.write_bytes(b"precious")
    status, _ = desk.insert(None, desk.arrays(x=NAN))
    assert status == 2
    assert desk.output.read_bytes() == b"precious"


PROCESSES = {
    "insert": ["insert", "{broken}", "--calibration", "{data}", "-o", "{output}"],
    "train": ["train", "{float}", "--data", "{data}", "-o", "{output}"],
    "fold": ["fold", "{float}", "-o", "{output}"],
}


@pytest.mark.parametrize("arguments", PROCESSES.values(), ids=PROCESSES)
def test_a_process_ends_with_one_line_and_status_2(desk, arguments):
    names = {
        "broken": desk.file("broken.onnx", desk.float_model.read_bytes()[:200]),
        "float": desk.float_model,
        "data": desk.data,
        "output": desk.output,
    }
    command = [sys.executable, "-m", "onnxqat", *(part.format(**names) for part in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refused(desk, (done.returncode, done.stderr))
    assert done.stdout == ""


def test_debug_shows_the_traceback(desk):
    command = [sys.executable, "-m", "onnxqat", "--debug", "inspect", str(desk.work / "none.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" in done.stderr
