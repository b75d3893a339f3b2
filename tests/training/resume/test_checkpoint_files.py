import logging
import tracemalloc

import numpy as np
import pytest

from onnxqat.errors import InputError
from onnxqat.training.resume.checkpoint_files import DamagedError, next_path, numbered, read, read_newest, write

TENSORS = {"a": np.arange(1000, dtype=np.float32), "b": np.array(7, np.int64), "c": np.zeros((0, 3), np.uint8)}


def test_what_is_written_is_read_back(tmp_path):
    write(tmp_path / "x", TENSORS, {"number": 0.1, "list": [1, -float("inf")]})
    tensors, facts = read(tmp_path / "x")
    assert facts == {"number": 0.1, "list": [1, -float("inf")]}
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


def test_no_more_than_a_tensor_is_in_memory_beside_those_that_are_written_or_read(tmp_path):
    tensors = {name: np.ones(2**18, np.float32) for name in "abcd"}
    for work in (lambda: write(tmp_path / "x", tensors, {}), lambda: read(tmp_path / "x")):
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5 * 2**20


def test_nothing_but_the_file_is_left(tmp_path):
    (tmp_path / ".x.0123abcd.tmp").mkdir()  # as a killed process leaves it
    (tmp_path / ".x.0123abcd.tmp" / ".tmpAbc").write_bytes(b"half")
    write(tmp_path / "x", TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("place", [0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_changed_byte_is_noticed(tmp_path, place):
    write(tmp_path / "x", TENSORS, {"text": "some text" * 100})
    content = bytearray((tmp_path / "x").read_bytes())
    content[int(place * len(content))] ^= 0b100
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        read(tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.999])
def test_a_cut_file_is_noticed(tmp_path, share):
    write(tmp_path / "x", TENSORS, {})
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedError):
        read(tmp_path / "x")


def test_a_file_of_another_kind_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": TENSORS["a"]}, tmp_path / "x")
    with pytest.raises(DamagedError, match="not a checkpoint of onnxqat"):
        read(tmp_path / "x")


def test_the_newest_whole_file_is_used(tmp_path, caplog):
    for number in range(3):
        write(next_path(tmp_path), TENSORS, {"number": number})
    newest = numbered(tmp_path)[-1]
    assert newest.name == "checkpoint-000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING):
        path, _, facts = read_newest(tmp_path)
    assert facts == {"number": 1}
    assert path.name == "checkpoint-000002.safetensors"
    assert "checkpoint-000003.safetensors" in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"junk"], ids=["no file", "empty", "junk"])
def test_a_folder_without_a_whole_one_is_an_error(tmp_path, content):
    if content is not None:
        next_path(tmp_path).write_bytes(content)
    with pytest.raises(InputError, match="begin"):
        read_newest(tmp_path)


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        write(tmp_path / "nowhere" / "x", TENSORS, {})
