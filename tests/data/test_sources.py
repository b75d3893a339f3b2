import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from onnxqat.data import sources
from onnxqat.data.batch import Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model, random

MODEL = io.load(model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=random(3, 2)))
X = random(5, 3)
LABELS = np.arange(5)


def read(source, **options):
    return list(sources.batches(source, MODEL, **options))


@pytest.mark.parametrize(
    "item",
    [X, (X,), [X], {"x": X}, torch.tensor(X), torch.tensor(X, requires_grad=True)],
    ids=["array", "tuple", "list", "dict", "tensor", "tensor with gradient"],
)
def test_inputs_come_in_any_usual_form(item):
    (batch,) = read([item])
    assert np.array_equal(batch["x"], X)


@pytest.mark.parametrize(
    "item", [(X, LABELS), {"x": X, "label": LABELS}, ({"x": X}, LABELS)], ids=["tuple", "dict", "dict and labels"]
)
def test_labels_come_along(item):
    (batch,) = read([item], needs_labels=True)
    assert np.array_equal(batch["label"], LABELS)


def test_labels_of_several_names_follow_the_inputs_in_order():
    (batch,) = read([(X, LABELS, LABELS + 1)], labels=("a", "b"))
    assert np.array_equal(batch["b"], LABELS + 1)


def test_torch_loader_is_a_source():
    loader = DataLoader(TensorDataset(torch.tensor(X), torch.tensor(LABELS)), batch_size=4)
    assert [len(batch["x"]) for batch in read(loader)] == [4, 1]


def test_function_that_returns_batches_can_be_read_again():
    source = sources.batches(lambda: ([X] for _ in range(2)), MODEL)
    assert len(list(source)) == len(list(source)) == 2


def test_generator_read_twice_says_so():
    source = sources.batches((x for x in [X]), MODEL)
    list(source)
    with pytest.raises(InputError, match="can be read once"):
        list(source)


def test_transform_turns_items_into_batches():
    (batch,) = read([{"image": X, "id": 7}], transform=lambda item: {"x": item["image"]})
    assert np.array_equal(batch["x"], X)


def test_bytes_become_floats():
    (batch,) = read([np.full((2, 3), 200, np.uint8)])
    assert batch["x"].dtype == np.float32
    assert batch["x"][0, 0] == 200


NAN = np.full((1, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"y": X}, "holds 'y', the model takes 'x', 'label'"),
        ({"label": LABELS}, "lacks 'x'"),
        (X.astype(np.float64), "type float64, the model takes float32; cast it"),
        (X[:, :2], r"shape \[5, 2\], the model takes \[any, 3\]"),
        (X[0], r"shape \[3\]"),
        (X[:0], "is empty"),
        (NAN, "NaN or infinity"),
        (X * np.float32(np.inf), "NaN or infinity"),
        ((X, LABELS, LABELS), "a tuple of 3"),
        ((), "a tuple of 0"),
        (None, "is None; let the loader"),
        ({"x": [[1.0, 2.0], [3.0]]}, "cannot be read as an array"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "cannot be read as an array"),
    ],
    ids=[
        "unknown",
        "missing",
        "type",
        "shape",
        "rank",
        "empty",
        "nan",
        "inf",
        "long",
        "none-tuple",
        "None",
        "ragged",
        "bfloat16",
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_batch_that_does_not_fit_is_refused_with_its_number(item, message):
    with pytest.raises(InputError, match=message) as caught:
        read([X, item])
    assert str(caught.value).startswith("batch 1: ")
    assert "\n" not in str(caught.value)


def test_missing_labels_are_refused_where_they_are_needed():
    with pytest.raises(InputError, match="lacks 'label'"):
        read([X], needs_labels=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no batches came"),
        (None, "is a NoneType"),
        (3, "is a int"),
        ({"x": X}, "single batch"),
        (lambda: 3, "the function returned a int"),
        ("none.npz", "no such file"),
        ("nomodule:f", "no module 'nomodule'"),
        ("json:f", "module 'json' has no 'f'"),
        ("json:", "names no function"),
        (":f", "names no function"),
    ],
)
def test_object_that_is_no_source_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        read(source)


@pytest.mark.parametrize(
    ("code", "message"),
    [("import not_installed_anywhere", "needs 'not_installed_anywhere'"), ("def (", "cannot be imported")],
    ids=["missing dependency", "syntax"],
)
def test_module_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, code, message):
    name = f"user_{len(code)}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InputError, match=message):
        read(f"{name}:f")


def test_function_is_found_in_a_module_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "user_data.py").write_text("import numpy\ndef f(): yield numpy.ones((2, 3), 'float32')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(read("user_data:f")) == 1


@given(rows=st.integers(1, 40), size=st.integers(1, 50))
@settings(max_examples=20)
def test_file_is_cut_into_batches_that_hold_every_row_once(tmp_path_factory, rows, size):
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    np.savez(path, x=random(rows, 3), label=np.arange(rows))
    source = sources.batches(path, MODEL, batch_size=size)
    found = list(source)
    assert len(source) == len(found)
    assert np.concatenate([batch["label"] for batch in found]).tolist() == list(range(rows))
    shuffled = np.concatenate([batch["label"] for batch in source.epoch(1, seed=3)])
    assert sorted(shuffled.tolist()) == list(range(rows))


def test_each_epoch_has_an_order_of_its_own_that_can_be_repeated(tmp_path):
    np.savez(tmp_path / "rows.npz", x=random(30, 3), label=np.arange(30))
    source = sources.batches(tmp_path / "rows.npz", MODEL, batch_size=30)
    first, second, again = (next(iter(source.epoch(n)))["label"].tolist() for n in (0, 1, 0))
    assert first == again
    assert first != second


def test_folder_is_read_one_file_at_a_time(tmp_path):
    for number in range(8):
        np.savez(tmp_path / f"{number}.npz", x=np.full((100_000, 3), number, np.float32))
    tracemalloc.start()
    numbers = [int(batch["x"][0, 0]) for batch in sources.batches(tmp_path, MODEL, batch_size=100_000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == list(range(8))
    # a file and its batch: 1.2 MB each; all of them 9.6 MB
    assert peak < 6e6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([1, None], object)}, "plain arrays"),
        ({"x": X, "label": LABELS[:4]}, "different lengths"),
        ({}, "no arrays of rows"),
        ({"x": np.float32(1)}, "no arrays of rows"),
        ({"x": X[:0]}, "no batches came"),
    ],
    ids=["pickled", "lengths", "nothing", "scalar", "no rows"],
)
def test_file_of_unusable_arrays_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize("share", [0, 10, 50, 90, 99])
def test_file_that_is_cut_off_is_refused(tmp_path, share):
    np.savez(tmp_path / "whole.npz", x=random(500, 3))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) * share // 100])
    with pytest.raises(InputError, match=r"cut\.npz: not an \.npz file"):
        read(tmp_path / "cut.npz")


def test_file_with_damaged_content_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=random(500, 3))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[1000:1040] = bytes(40)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"not an \.npz file of plain arrays"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize(
    "write", [lambda p: np.save(p.open("wb"), X), lambda p: p.write_text("hello")], ids=["npy", "text"]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_file_of_another_kind_is_refused(tmp_path, write):
    write(tmp_path / "data.npz")
    with pytest.raises(InputError, match=r"not an \.npz file"):
        read(tmp_path / "data.npz")


def test_folder_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.npz file"):
        read(tmp_path)


def test_batch_size_below_one_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=X)
    with pytest.raises(InputError, match="batch size is 0"):
        read(tmp_path / "data.npz", batch_size=0)


ADVICE = {
    "channels last": ((8, 28, 28, 3), (None, 3, 28, 28), r"channels last: transpose it, x.transpose\(0, 3, 1, 2\)"),
    "channels first": ((8, 3, 28, 28), (None, 28, 28, 3), r"channels first: transpose it, x.transpose\(0, 2, 3, 1\)"),
    "tokens": ((8, 50, 16), (None, 16, 50), r"x.transpose\(0, 2, 1\)"),
    "fixed batch": ((64, 3, 8, 8), (1, 3, 8, 8), "--batch-size 1, or a loader of batches of 1"),
    "rest of a batch": ((5, 3), (8, 3), "leave out what does not fill a batch of 8"),
    "fixed batch, channels last": ((1, 8, 8, 3), (1, 3, 8, 8), "channels last"),
    "no channel": ((64, 28, 28), (None, 1, 28, 28), r"numpy.expand_dims\(x, 1\)"),
    "no channel, last": ((64, 28, 28), (None, 28, 28, 1), r"numpy.expand_dims\(x, 3\)"),
    "single samples": ((3, 28, 28), (None, 3, 28, 28), "single samples, let the loader batch them"),
    "other size": ((8, 3, 32, 32), (None, 3, 28, 28), "reshape it"),
}


@pytest.mark.parametrize(("shape", "wanted", "advice"), ADVICE.values(), ids=ADVICE)
def test_data_of_another_shape_is_refused_with_what_makes_it_fit(shape, wanted, advice):
    signature = Signature({"x": (np.dtype(np.float32), wanted)})
    with pytest.raises(InputError, match=advice):
        check_batch(np.zeros(shape, np.float32), signature)
