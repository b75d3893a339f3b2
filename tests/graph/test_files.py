"""Outputs of every sort: files, links, pipes, devices, standard output; and what must not be overwritten."""

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from onnxqat.errors import InputError
from onnxqat.graph import external, files, io
from tests.models import model, random

W = random(32, 3)
MODEL = model("(float[N,32] x) => (float[N,3] y) { y = MatMul(x, w) }", w=W)
WHOLE = MODEL.SerializeToString()


@pytest.mark.parametrize("target", ["there", "dangling"])
def test_a_link_is_followed_and_stays_a_link(tmp_path, target):
    (tmp_path / "away").mkdir()
    (tmp_path / "link.onnx").symlink_to("away/real.onnx")
    if target == "there":
        io.save(MODEL, tmp_path / "away" / "real.onnx")
    io.save(MODEL, tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert (tmp_path / "away" / "real.onnx").read_bytes() == WHOLE
    assert len(list(tmp_path.iterdir())) == 2
    assert len(list((tmp_path / "away").iterdir())) == 1


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "a.onnx").symlink_to("b.onnx")
    (tmp_path / "b.onnx").symlink_to("a.onnx")
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        io.save(MODEL, tmp_path / "a.onnx")


@pytest.mark.parametrize("write", [lambda p: io.save(MODEL, p), lambda p: files.write_text("{}", p, files.JSON)])
def test_a_device_is_written_to_and_stays_a_device(write):
    write("/dev/null")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match="No space left on device"):
        write("/dev/full")


def test_a_pipe_gets_the_model(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    io.save(MODEL, tmp_path / "pipe")
    reader.join()
    assert got == [WHOLE]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_gets_the_model_and_nothing_else(capfdbinary, name):
    io.save(MODEL, name)
    assert capfdbinary.readouterr() == (WHOLE, b"")


@pytest.mark.parametrize(("name", "message"), [("none/m.onnx", "does not exist"), (".", "is a folder")])
def test_a_path_where_no_file_can_be_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        files.check(tmp_path / name, io.MODEL)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("protected", ["folder", "file"])
def test_what_is_write_protected_is_refused(tmp_path, protected):
    io.save(MODEL, tmp_path / "m.onnx")
    (tmp_path if protected == "folder" else tmp_path / "m.onnx").chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        files.check(tmp_path / "m.onnx", io.MODEL)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 an archive", b'"""Trains."""\nimport numpy\n', b"\x08\x01\x12\xff\xff saved", b"{}", b"\x00" * 64],
    ids=["npz", "python", "protobuf", "json", "zeros"],
)
def test_a_file_that_is_no_model_is_not_overwritten_by_one(tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(InputError, match="exists and is not an ONNX model; remove it, or choose another path"):
        io.save(MODEL, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", [files.JSON, files.JSON_LINES], ids=["json", "lines"])
@pytest.mark.parametrize("content", [WHOLE, b"import numpy\n", b"[1]", b"1\n", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_not_overwritten(tmp_path, kind, content):
    (tmp_path / "precious").write_bytes(content)
    with pytest.raises(InputError, match=f"exists and is not {kind.name}"):
        files.check(tmp_path / "precious", kind)


def test_files_of_the_same_kind_and_empty_ones_are_overwritten_with_their_rights(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch(0o600)
    io.save(MODEL, path)
    other = model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    io.save(other, path)
    assert path.read_bytes() == other.SerializeToString()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.write_text('{"a": 1}', tmp_path / "r.json", files.JSON)
    files.write_text('{"a": 2}', tmp_path / "r.json", files.JSON)
    assert (tmp_path / "r.json").read_text() == '{"a": 2}\n'


def test_lines_are_appended_to_lines_and_to_pipes(tmp_path):
    (tmp_path / "log").write_text('{"step": 1}\n')
    with files.appending(tmp_path / "log", files.JSON_LINES) as log:
        log.write('{"step": 2}\n')
    assert (tmp_path / "log").read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("name", ["m.onnx", "soft", "hard", "sub/../m.onnx"])
def test_an_input_is_not_overwritten_whatever_it_is_called(tmp_path, name):
    source = tmp_path / "m.onnx"
    io.save(MODEL, source)
    (tmp_path / "sub").mkdir()
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    with pytest.raises(InputError, match="is an input of this call"):
        files.check_all([(tmp_path / name, io.MODEL)], [None, "package.module:function", source])


@pytest.fixture
def large(monkeypatch) -> None:
    """Models whose weights go into a file beside them."""
    monkeypatch.setattr(external, "TOO_LARGE", 10)


@pytest.mark.usefixtures("large")
def test_data_of_a_large_model_replaces_that_of_the_model_before_it_and_nothing_else(tmp_path):
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    io.save(MODEL, path)
    io.save(MODEL, path)
    assert sorted(tmp_path.iterdir()) == [path, data]
    path.unlink()
    before = data.read_bytes()
    with pytest.raises(InputError, match=r"m.onnx.data: exists and is not data of m.onnx; remove it"):
        io.save(MODEL, path)
    assert data.read_bytes() == before
    assert not path.exists()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data.mkdir(), "is a folder"),
        (os.mkfifo, "is no file, so that it cannot hold data of m.onnx"),
        (lambda data: data.symlink_to("/dev/null"), "is no file"),
        (lambda data: data.symlink_to(Path(__file__)), "exists and is not data of m.onnx"),
    ],
    ids=["folder", "pipe", "device", "link to another file"],
)
def test_what_is_no_data_of_the_model_is_not_replaced_by_its_data(tmp_path, make, message):
    make(tmp_path / "m.onnx.data")
    with pytest.raises(InputError, match=message):
        io.save(MODEL, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx.data"]


@pytest.mark.usefixtures("large")
def test_data_of_a_large_model_goes_where_a_link_in_its_place_leads(tmp_path):
    (tmp_path / "m.onnx.data").symlink_to("elsewhere")
    io.save(MODEL, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == W.tobytes()


@pytest.mark.usefixtures("large")
def test_data_of_an_input_is_not_overwritten_by_data_of_an_output(tmp_path):
    io.save(MODEL, tmp_path / "a.onnx")
    (tmp_path / "a.onnx").rename(tmp_path / "b.onnx")
    with pytest.raises(InputError, match=r"a.onnx: a.onnx.data beside it is data of an input of this call"):
        files.check_all([(tmp_path / "a.onnx", io.MODEL)], [tmp_path / "b.onnx"])


def test_two_outputs_are_not_one_file(tmp_path):
    pair = [(tmp_path / "r", files.JSON), (f"{tmp_path}/./r", files.JSON_LINES)]
    with pytest.raises(InputError, match="is named for two outputs"):
        files.check_all(pair)
    with pytest.raises(InputError, match="is named for two outputs"):
        files.check_all([("-", io.MODEL), ("-", files.JSON)])
    files.check_all([("/dev/null", io.MODEL), ("/dev/null", files.JSON)])


def test_writers_of_one_file_at_the_same_time_each_write_it_whole(tmp_path):
    def write() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            files.write_text('{"a": 1}', tmp_path / "r.json", files.JSON)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert (tmp_path / "r.json").read_text() == '{"a": 1}\n'
