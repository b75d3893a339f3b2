"""Tables, datasets and arrays of files, as people have them, read as batches of a model."""

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from pyarrow import csv, parquet

import onnxqat
from onnxqat.data import sources
from onnxqat.data.columns import Columns, parsed
from onnxqat.data.paths import Form
from onnxqat.data.pixels import Pixels
from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model, random

NONE = Pixels()
WIDE = io.load(model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=random(3, 2)))
TWO = io.load(model("(float[N,1] a, int64[N] b) => (float[N,1] y) { c = Cast<to: int = 1>(b) y = Add(a, c) }"))
PICTURE = io.load(model("(uint8[N,4,4,3] image) => (uint8[N,4,4,3] y) { y = Identity(image) }"))
ROWS = 10
X, LABELS = random(ROWS, 3, seed=1), np.arange(ROWS)
TABLE = pa.table({"a": X[:, 0].astype(np.float64), "b": LABELS, "c": X[:, 2], "label": LABELS % 2})


def read(path, of=WIDE, *, batch_size=4, names=(), pixels=NONE):
    return sources.batches(sources.read(path, batch_size, Form(Columns(parsed(names)), pixels)), of)


def joined(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path):
    """The table, in a Parquet file of two row groups or in a CSV file."""
    path = tmp_path / f"table.{request.param}"
    if request.param == "csv":
        csv.write_csv(TABLE, path)
    else:
        parquet.write_table(TABLE, path, row_group_size=6)
    return path


def test_columns_of_a_table_are_the_only_input_in_order(table):
    batches = read(table)
    assert joined(batches, "x").tolist() == np.stack([X[:, 0], LABELS.astype(np.float32), X[:, 2]], 1).tolist()
    assert joined(batches, "label").tolist() == (LABELS % 2).tolist()


def test_columns_called_as_inputs_are_these(table):
    batches = read(table, TWO, names=["label=c"])
    assert joined(batches, "a").tolist() == X[:, :1].tolist()
    assert joined(batches, "b").tolist() == LABELS.tolist()
    assert joined(batches, "label").astype(np.float32).tolist() == X[:, 2].tolist()


def test_chosen_columns_come_in_the_order_that_is_asked_for(table):
    assert joined(read(table, names=["x=c,a,b"]), "x")[:, 0].tolist() == X[:, 2].tolist()


def test_rows_of_a_table_are_shuffled_by_seed_and_epoch(table):
    batches = read(table)
    orders = [joined(batches.epoch(epoch), "x")[:, 1].tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == LABELS.tolist()


def test_library_reads_columns_under_other_names(table):
    batches = sources.batches(onnxqat.data.read(table, 4, map={"x": ["c", "a", "b"], "label": "b"}), WIDE)
    assert joined(batches, "x")[:, 0].tolist() == X[:, 2].tolist()
    assert joined(batches, "label").tolist() == LABELS.tolist()


def test_folder_of_tables_is_one(tmp_path):
    for number in range(2):
        csv.write_csv(TABLE, tmp_path / f"{number}.csv")
    assert len(joined(read(tmp_path), "x")) == 2 * ROWS


def test_lists_in_a_column_are_rows_of_an_input(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": X.tolist(), "label": LABELS}), path)
    assert joined(read(path), "x").tolist() == X.tolist()


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ({"name": ["ab"] * 2, "v": [1.0, 2.0]}, [], "column 'name': holds string, not numbers"),
        ({"v": [1.0, None]}, [], "column 'v': lacks 1 values"),
        ({"x": [[1.0], [1.0, 2.0]]}, [], "column 'x': holds lists of different lengths"),
        ({"v": [1.0]}, ["x=w"], "has no 'w'; it holds 'v'"),
        ({"v": [1.0]}, [], r"shape \[1, 1\], the model takes \[any, 3\]"),
        ({"v": pa.array([], pa.float32())}, [], "holds no rows"),
    ],
    ids=["text", "gaps", "ragged", "missing", "too few", "empty"],
)
def test_table_that_does_not_fit_is_refused(tmp_path, columns, names, message):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message) as caught:
        list(read(path, names=names))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_file_that_is_no_table_says_so(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(InputError, match=name):
        list(read(tmp_path / name))


def test_arrays_are_renamed_and_others_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", data=X, label=LABELS, extra=X)
    assert joined(read(tmp_path / "a.npz", names=["x=data"]), "x").tolist() == X.tolist()


def test_npy_files_of_a_folder_are_arrays_called_by_their_names(tmp_path):
    np.save(tmp_path / "x_train.npy", X)
    np.save(tmp_path / "y_train.npy", LABELS)
    batches = read(tmp_path, names=["x=x_train", "label=y_train"])
    assert joined(batches, "x").tolist() == X.tolist()
    assert joined(batches, "label").tolist() == LABELS.tolist()


def test_npy_file_of_objects_is_refused_without_loading_it(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"x\.npy: not an array of numbers"):
        read(tmp_path)


def test_saved_dataset_gives_columns(tmp_path):
    Dataset.from_dict({"features": X, "label": LABELS}).save_to_disk(tmp_path / "set")
    batches = read(tmp_path / "set")
    assert joined(batches, "x").tolist() == X.tolist()
    assert sorted(joined(batches.epoch(1), "label").tolist()) == LABELS.tolist()


@pytest.mark.parametrize("column", ["img", "image"], ids=["another name", "the name of the input"])
def test_saved_dataset_gives_images(column, tmp_path):
    colours = [(250, 0, 10), (0, 7, 0)]
    features = Features({column: Image(), "label": Value("int64")})
    images = [PIL.Image.new("RGB", (9, 6), colour) for colour in colours]
    Dataset.from_dict({column: images, "label": [0, 1]}, features).save_to_disk(tmp_path / "set")
    assert joined(read(tmp_path / "set", PICTURE), "image")[:, 0, 0].tolist() == [list(colour) for colour in colours]


def test_folder_of_several_datasets_names_them(tmp_path):
    one = Dataset.from_dict({"x": X})
    DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="holds the datasets train, test; give the folder of one of them"):
        read(tmp_path / "set")


@pytest.mark.parametrize(
    ("names", "pixels", "message"),
    [
        (["x"], Pixels(), "--map x: is not INPUT=NAME"),
        (["x=a", "x=b"], Pixels(), "--map x=b: is not INPUT=NAME, once"),
        (["x=z"], Pixels(), "has no 'z'; it holds 'x'"),
        ([], Pixels(preset="unit"), "holds no images; leave options for images out"),
    ],
)
def test_option_that_does_not_belong_to_arrays_is_refused(tmp_path, names, pixels, message):
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(InputError, match=message):
        list(read(tmp_path / "a.npz", names=names, pixels=pixels))


def test_function_has_no_names_to_choose_from():
    with pytest.raises(InputError, match="has no names that --map could choose from"):
        read("numpy:array", names=["x=a"])
