"""Input that nobody would write by hand, at the command line: whatever it is, the call ends with status 1 or 2 and one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from onnxqat import Trainer, fold
from onnxqat.insertion import insert
from tests import classifier
from tests.classifier import LABELS, NET, ROWS, WEIGHTS
from tests.command_line import status_of
from tests.models import model, random


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = classifier.write(tmp_path_factory.mktemp("good"))
    trainer = Trainer(folder / "qdq.onnx")
    trainer.step({"x": ROWS, "label": LABELS})
    trainer.save(folder / "run.safetensors")
    return folder


@pytest.fixture
def call(capfd) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process: exit status, and all that is printed."""

    def run(*arguments: object) -> tuple[int, str]:
        status = status_of(*arguments)
        said = capfd.readouterr()
        return status, said.out + said.err

    return run


def refused(result: tuple[int, str]) -> str:
    """The one line of an error, without the characters that control a terminal."""
    code, said = result
    assert "Traceback" not in said
    assert "run again with --debug" not in said
    assert all(one.isprintable() or one == "\n" for one in said)
    *notes, line = said.strip().splitlines()
    assert line.startswith("error: ")
    assert not [note for note in notes if note.lower().startswith("error")]
    assert code == 2
    return line


# what models hold


def changed(change: Callable[[onnx.ModelProto], object], body: str = NET, **weights: np.ndarray) -> onnx.ModelProto:
    proto = model(body, **(weights or WEIGHTS))
    change(proto)
    return proto


def quantized(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = fold(insert(model(NET, **WEIGHTS), [ROWS]))
    change(proto)
    return proto


def initializer(proto: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(ending))


def set_array(proto: onnx.ModelProto, ending: str, array: np.ndarray) -> None:
    tensor = initializer(proto, ending)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def weight_node(proto: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.input[0] == "w_quantized")


def weight_axis(proto: onnx.ModelProto, axis: int) -> None:
    node = weight_node(proto)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", axis))


def weight_type(proto: onnx.ModelProto, dtype: type) -> None:
    """Codes of another type, which no integer kernel takes: ONNX Runtime refuses them only when it has fused the layer."""
    set_array(proto, "w_quantized", numpy_helper.to_array(initializer(proto, "w_quantized")).astype(dtype))
    del weight_node(proto).input[2:]


def no_shape(value: onnx.ValueInfoProto) -> None:
    value.type.tensor_type.ClearField("shape")


def spoiled(name: str, number: float) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(initializer(proto, name)).copy()
        array.flat[1] = number
        set_array(proto, name, array)

    return change


FLOAT_MODELS = {
    "no outputs": (changed(lambda p: p.graph.ClearField("output")), "it has no outputs"),
    "attribute of another type": (
        changed(lambda p: p.graph.node[0].attribute.append(helper.make_attribute("transB", 0.5))),
        "transB",
    ),
    "NaN in a weight": (changed(spoiled("w", np.nan)), "initializer 'w' of Gemm 'a'"),
    "infinity in a weight": (changed(spoiled("v", np.inf)), "initializer 'v' of Gemm 'y'"),
    "NaN in a bias": (changed(spoiled("b", np.nan)), "initializer 'b' of Gemm 'a'"),
    "weight that makes NaN": (
        changed(
            lambda p: None,
            "(float[N,8] x) => (float[N,3] y) { a = MatMul(x, w) z = Sub(a, a) y = Div(z, z) }",
            w=random(8, 3),
        ),
        "NaN",
    ),
    "input that is missing, behind an output without a shape": (
        changed(lambda p: (p.graph.node[1].ClearField("input"), no_shape(p.graph.output[0]))),
        "has input size 0 not in range",
    ),
    "name that nothing makes, behind an input without a shape": (
        changed(lambda p: (p.graph.node[0].input.__setitem__(2, "nothing"), no_shape(p.graph.input[0]))),
        "input 'nothing'",
    ),
    "normalization of other channels than the layer": (
        changed(
            lambda p: None,
            "(float[N,8] x) => (float[N,3] y) { a = Gemm(x, w, b) y = BatchNormalization(a, s, s, s, s) }",
            w=random(8, 3),
            b=random(3),
            s=np.ones(4, np.float32),
        ),
        "ONNX Runtime cannot load it",
    ),
    "weight of another type": (
        changed(lambda p: set_array(p, "v", np.ones((6, 3), bool))),
        "Gemm 'y': its input 'v' is of type bool",
    ),
    "bias of another layer": (
        changed(lambda p: p.graph.node[0].input.__setitem__(2, "c")),
        "Gemm 'a': its bias of shape [3] does not fit 6 results",
    ),
    "tensor of no known type": (changed(lambda p: setattr(initializer(p, "w"), "data_type", 99)), "99"),
    "tensor of float8": (
        changed(lambda p: setattr(initializer(p, "w"), "data_type", TensorProto.FLOAT8E4M3FN)),
        "does not have the size",
    ),
    "negative size": (changed(lambda p: initializer(p, "w").dims.__setitem__(0, -8)), "does not have the size"),
    "stride of 0": (
        model("(float[N,3,8,8] x) => (float[N,4,H,W] y) { y = Conv<strides=[0,1]>(x, w) }", w=random(4, 3, 3, 3)),
        "strides is 0, 1, below 1",
    ),
    "a hundred million elements": (
        model(
            "(float[N,8] x) => (float[M,8] y) { e = Expand(x, s) y = MatMul(e, w) }",
            s=np.array([10**8, 8]),
            w=random(8, 8),
        ),
        "Expand 'e' makes a value of 8e+08 elements",
    ),
}


@pytest.mark.parametrize("command", ["insert", "inspect"])
@pytest.mark.parametrize(("proto", "message"), FLOAT_MODELS.values(), ids=FLOAT_MODELS)
def test_float_model_that_is_broken(good, tmp_path, call, proto, message, command):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    if command == "inspect":
        status, said = call("inspect", tmp_path / "m.onnx")
        assert status in (0, 2)
        assert "Traceback" not in said
        return
    data = good / "data.npz"
    if "Conv" in proto.graph.node[0].op_type:
        np.savez(data := tmp_path / "images.npz", x=random(2, 3, 8, 8))
    assert message in refused(call("insert", tmp_path / "m.onnx", "--calibration", data, "-o", tmp_path / "out.onnx"))
    assert not (tmp_path / "out.onnx").exists()


DEPLOYED_MODELS = {
    "axis that is not there": (quantized(lambda p: weight_axis(p, 7)), "axis is 7, but 'w_quantized' has 2 axes"),
    "axis of another size": (quantized(lambda p: weight_axis(p, 0)), "axis 0 of 'w_quantized' size 8"),
    "scale of two axes": (
        quantized(lambda p: set_array(p, "w_scale", np.ones((2, 3), np.float32))),
        "quantize the model again",
    ),
    "zero point of another shape": (
        quantized(lambda p: set_array(p, "w_scale", np.ones(5, np.float32))),
        "quantize the model again",
    ),
    "scale of NaN": (quantized(lambda p: set_array(p, "w_scale", np.full(6, np.nan, np.float32))), "scale 'w_scale'"),
    "codes that no kernel takes": (quantized(lambda p: weight_type(p, np.int32)), "ONNX Runtime cannot load it"),
    "scale of 0": (quantized(lambda p: set_array(p, "w_scale", np.zeros(6, np.float32))), "scale 'w_scale'"),
}


@pytest.mark.parametrize("command", ["fold", "train", "inspect"])
@pytest.mark.parametrize(("proto", "message"), DEPLOYED_MODELS.values(), ids=DEPLOYED_MODELS)
def test_quantized_model_that_is_broken(good, tmp_path, call, proto, message, command):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    arguments = {
        "fold": ["-o", tmp_path / "out.onnx"],
        "train": ["--data", good / "data.npz", "-o", tmp_path / "out.onnx"],
        "inspect": [],
    }[command]
    result = call(command, tmp_path / "m.onnx", *arguments)
    if command == "fold":
        assert message in refused(result)
    elif result[0]:
        refused(result)
    assert (tmp_path / "out.onnx").exists() == (command != "inspect" and not result[0])


def test_infinity_that_masks_is_no_broken_weight():
    body = """(float[N,4,4] x, bool[4,4] m) => (float[N,4,3] y)
        { s = MatMul(x, x) f = Where(m, s, low) p = Softmax(f) y = MatMul(p, w) }"""
    proto = model(body, low=np.float32(-np.inf), w=random(4, 3))
    mask = np.tri(4, dtype=np.bool_)
    assert insert(proto, [{"x": random(2, 4, 4), "m": mask}]).graph.node


# what names hold


@pytest.mark.parametrize(
    "name", ["NNCFConv2d[conv1]", "[/red]", "[bold]x[/bold]", ":smile:", "[link=http://a]b[/link]"]
)
def test_names_are_shown_as_they_are(good, tmp_path, call, name):
    proto = onnx.load(good / "qdq.onnx")
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.name = name
            helper.set_model_props(proto, {})
            node.metadata_props.add(key="onnxqat.float", value=name)
    for tensor in proto.graph.initializer:
        tensor.name = name if tensor.name == "w" else tensor.name
    for node in proto.graph.node:
        node.input[:] = [name if one == "w" else one for one in node.input]
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    status, said = call("inspect", tmp_path / "m.onnx")
    assert status == 0
    assert said.replace("\n", "").count(name[:9]) >= 1
    assert name in said or len(name) > 12  # a column may be narrower


def test_escape_sequences_do_not_reach_the_terminal(good, tmp_path, call):
    proto = onnx.load(good / "float.onnx")
    for node in proto.graph.node:
        node.name = f"\x1b[31m\u202e{node.op_type}\x07"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    status, said = call("inspect", tmp_path / "m.onnx")
    assert status == 0
    assert "Gemm" in said
    assert all(one.isprintable() or one == "\n" for one in said)
    proto.graph.node[0].op_type = "\x1b]0;owned\x07Custom"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert "Custom" in refused(call("inspect", tmp_path / "m.onnx"))


# configurations

CONFIGS = {
    "self": '{"self": 1}',
    "self inside": '{"ignore": [{"self": 1, "name": "a"}]}',
    "5,000 digits": '{"weight_bits": ' + "9" * 5000 + "}",
    "5,000 digits in a list": '{"inputs": [{"shape": [' + "9" * 5000 + "]}]}",
    "20,000 brackets": "[" * 20_000 + "]" * 20_000,
    "20,000 objects": '{"a": ' * 20_000 + "1" + "}" * 20_000,
    "infinity": '{"percentile": 1e999}',
    "not a number": '{"percentile": NaN}',
    "huge sample": '{"inputs": [{"shape": [100000, 100000, 8]}]}',
    "NNCF, self": '{"compression": {"algorithm": "quantization", "self": 1}}',
    "NNCF, 5,000 digits": '{"compression": {"algorithm": "quantization", "weights": {"bits": ' + "9" * 5000 + "}}}",
    "NNCF, 2,000 brackets": '{"compression": ' + "[" * 2000 + "]" * 2000 + "}",
    "NNCF, huge sample": '{"input_info": {"sample_size": [100000, 100000, 8]}, "compression": {"algorithm": "quantization"}}',
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_configuration_that_is_broken(good, tmp_path, call, text):
    (tmp_path / "c.json").write_text(text)
    arguments = ("--calibration", good / "data.npz", "--config", tmp_path / "c.json", "-o", tmp_path / "out.onnx")
    line = refused(call("insert", good / "float.onnx", *arguments))
    assert len(line) < 1000


# data


def encrypted(path: Path) -> None:
    np.savez(path, x=ROWS)
    content = bytearray(path.read_bytes())
    content[6], content[content.find(b"PK\x01\x02") + 8] = 1, 1
    path.write_bytes(content)


def packed_oddly(path: Path) -> None:
    np.savez(path, x=ROWS)
    content = bytearray(path.read_bytes())
    content[8], content[content.find(b"PK\x01\x02") + 10] = 99, 99
    path.write_bytes(content)


def bomb(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (300000000, 1), }".ljust(117) + b"\n"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\x01\x00\x76\x00" + header)
        for _ in range(12):
            file.write(bytes(100_000_000))


def huge_header(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + bytes(100))


ARCHIVES = {
    "encrypted": (encrypted, "not an .npz file of plain arrays"),
    "packed oddly": (packed_oddly, "not an .npz file of plain arrays"),
    "small file, gigabytes inside": (bomb, "unpack to 1.2e+03 MB"),
    "more rows than the file holds": (huge_header, "not an .npz file of plain arrays"),
}


@pytest.mark.parametrize(("write", "message"), ARCHIVES.values(), ids=ARCHIVES)
def test_archive_that_is_broken(good, tmp_path, call, write, message):
    write(tmp_path / "d.npz")
    result = call("insert", good / "float.onnx", "--calibration", tmp_path / "d.npz", "-o", tmp_path / "out.onnx")
    assert message in refused(result)


def test_stray_files_in_a_folder_of_data_are_skipped_with_a_warning(good, tmp_path, call):
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "a.npz", x=ROWS)
    (folder / "._a.npz").write_bytes(b"Mac OS X")
    (folder / "gone.npz").symlink_to(tmp_path / "nowhere.npz")
    status, said = call("insert", good / "float.onnx", "--calibration", folder, "-o", tmp_path / "out.onnx")
    assert status == 0
    assert "._a.npz: skipped" in said
    assert "gone.npz: skipped" in said


#: Modules of the user's whose `batches` or import goes wrong, and what the line says.
MODULES = {
    "import that raises": (
        "raise RuntimeError('no\\n\\x1b[31mway')",
        "its module cannot be imported (RuntimeError: no",
    ),
    "import that exits": (
        "import sys\nsys.exit(0)",
        "its module cannot be imported (it ends the process, with status 0)",
    ),
    "broken syntax": ("def batches(:", "its module cannot be imported (SyntaxError"),
    "attribute that raises": ("def __getattr__(name):\n    raise ValueError('not here')", "ValueError: not here"),
    "function that raises": ("def batches():\n    raise KeyError('a')", "(KeyError: 'a')"),
    "function that exits": ("def batches():\n    raise SystemExit(0)", "it ends the process, with status 0"),
    "function that returns nothing": ("def batches():\n    pass", "not an iterable of batches"),
    "loader that raises": ("def batches():\n    yield 1 / 0", "the loader fails (ZeroDivisionError"),
    "loader that exits": ("def batches():\n    exit()\n    yield 1", "the loader fails (it ends the process"),
    "loader that raises in the middle": (
        "import numpy as np\ndef batches():\n    yield {'x': np.ones((2, 8), np.float32), 'label': [0, 1]}\n    yield 1 / 0",
        "the loader fails (ZeroDivisionError",
    ),
    "loader that exits in the middle": (
        "import numpy as np\ndef batches():\n    yield {'x': np.ones((2, 8), np.float32), 'label': [0, 1]}\n    exit(0)",
        "the loader fails (it ends the process",
    ),
    "length that raises": (
        """class batches:
    def __len__(self):
        raise OSError('no length')
    def __iter__(self):
        import numpy as np
        return iter([np.ones((2, 8), np.float32)])""",
        "its length cannot be read (OSError: no length)",
    ),
    "length below 0": (
        "class batches:\n    def __len__(self):\n        return -1\n    def __iter__(self):\n        return iter([])",
        "its length cannot be read (ValueError",
    ),
    "array that raises": (
        """class Sick:
    def __array__(self, *a, **k):
        raise RuntimeError('sick')
def batches():
    return [{'x': Sick(), 'label': [1]}]""",
        "(RuntimeError: sick)",
    ),
    "error that cannot be shown": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\ndef batches():\n    raise Odd",
        "(Odd)",
    ),
}


@pytest.mark.parametrize(("source", "message"), MODULES.values(), ids=MODULES)
def test_user_code_that_fails(good, tmp_path, call, monkeypatch, request, source, message):
    name = f"hostile_{list(MODULES).index(request.node.callspec.id)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    line = refused(
        call("train", good / "qdq.onnx", "--data", f"{name}:batches", "--loss", "cross_entropy", "-o", "out.onnx")
    )
    assert message in line
    assert (tmp_path / "out.onnx").exists() == ("in the middle" in request.node.callspec.id)  # what was reached


@pytest.mark.parametrize("name", ["..a:b", ".:b", "a..b:c", ":b", "a:", "x" * 5000 + ":b", "builtins:min", "a b:c"])
def test_names_of_modules_that_cannot_be(good, tmp_path, call, name):
    refused(call("insert", good / "float.onnx", "--calibration", name, "-o", tmp_path / "out.onnx"))


def test_path_that_is_too_long(good, tmp_path, call):
    refused(call("fold", "x" * 5000, "-o", tmp_path / "out.onnx"))


# checkpoints


def resealed(source: Path, target: Path, change: Callable[[dict[str, np.ndarray], dict[str, object]], object]) -> None:
    """A checkpoint with another content under the checksum that fits it."""
    from safetensors import safe_open

    from onnxqat.training.resume.checkpoint_files import _digest

    with safe_open(source, framework="np") as file:
        tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
    change(tensors, facts)
    text = json.dumps(facts)
    save_file(tensors, target, {"facts": text, "sha256": _digest(tensors, text)})


def as_float8(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes().replace(b'"U8"', b'"F8_E4M3"'))


CHECKPOINTS = {
    "float8": as_float8,
    "no parameters": lambda a, b: resealed(a, b, lambda tensors, facts: tensors.pop("parameters")),
    "short parameters": lambda a, b: resealed(a, b, lambda t, facts: t.update(parameters=t["parameters"][:3])),
    "no schedule": lambda a, b: resealed(a, b, lambda tensors, facts: facts.pop("schedule")),
    "schedule of another kind": lambda a, b: resealed(a, b, lambda tensors, facts: facts.update(schedule=[1])),
    "random numbers of another kind": lambda a, b: resealed(a, b, lambda tensors, facts: facts.update(random="x")),
    "arguments of another kind": lambda a, b: resealed(a, b, lambda tensors, facts: facts.update(arguments=[])),
    "no path, no facts": lambda a, b: resealed(a, b, lambda tensors, facts: facts.clear()),
}


@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoint_that_was_altered(good, tmp_path, call, damage):
    (tmp_path / "run").mkdir()
    damage(good / "run.safetensors", tmp_path / "run" / "checkpoint-000001.safetensors")
    arguments = ("--data", good / "data.npz", "-o", tmp_path / "out.onnx", "--checkpoint", tmp_path / "run", "--resume")
    refused(call("train", good / "qdq.onnx", *arguments))


# streams, interpreters and folders, which take a process of their own


def process(
    folder: Path, *arguments: object, shell: str = "", script: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a folder, by `python -m`, or by the script that pip installs."""
    root = str(Path(__file__).parents[1])
    start = [sys.executable, "-m", "onnxqat"]
    if script:
        program = folder / "bin" / "onnxqat"
        program.parent.mkdir(exist_ok=True)
        program.write_text("from onnxqat.cli import main\nmain()\n")
        start = [sys.executable, str(program)]
    command = [*start, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": root}
    quoted = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(quoted, capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False)


@pytest.mark.parametrize("shell", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_closed_streams_end_no_work(good, tmp_path, shell):
    result = process(
        tmp_path, "insert", good / "float.onnx", "--calibration", good / "data.npz", "-o", "out.onnx", shell=shell
    )
    assert result.returncode == 0
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_closed_standard_output_takes_no_model(good, tmp_path, name):
    result = process(tmp_path, "fold", good / "qdq.onnx", "-o", name, shell=">&-")
    assert result.returncode == 2
    assert result.stderr == f"error: {name}: standard output is closed; open it, or name a file\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_standard_output_that_is_full_is_an_error(good, tmp_path):
    result = process(tmp_path, "inspect", good / "qdq.onnx", shell=">/dev/full")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", [False, True], ids=["python -m", "onnxqat"])
def test_current_folder_has_the_module_that_is_named_first_and_every_other_last(good, tmp_path, script):
    for name in ("numpy", "onnx", "onnxruntime", "openvino", "typer", "rich", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    # `string` and `data` are names of other modules too, `helper` of none
    (tmp_path / "helper.py").write_text("import numpy as np\nrows = np.ones((4, 8), np.float32)\n")
    for name in ("mine", "string"):
        (tmp_path / f"{name}.py").write_text("from helper import rows\ndef batches():\n    return [rows]\n")
        arguments = ("insert", good / "float.onnx", "--calibration", f"{name}:batches", "-o", f"{name}.onnx")
        result = process(tmp_path, *arguments, script=script)
        assert result.returncode == 0, result.stderr
        assert onnx.load(tmp_path / f"{name}.onnx").graph.node
