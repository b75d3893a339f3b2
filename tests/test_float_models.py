"""The committed models and data that demo and benchmarks start from."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import onnx
import pytest

from models import fashion_mnist
from onnxqat.runtime import Inference
from tools.fetch_fashion_mnist import check, download
from tools.packages import FetchError

MODELS = [
    pytest.param(fashion_mnist.SLICE.with_name("resnet20.onnx"), fashion_mnist.test, id="resnet20"),
    pytest.param(fashion_mnist.SLICE.with_name("separable.onnx"), fashion_mnist.test_nhwc, id="separable"),
]


@pytest.mark.parametrize(("path", "data"), MODELS)
def test_model_is_valid_small_and_takes_any_batch(path, data):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size <= 1_200_000
    assert [value.name for value in model.graph.input] == ["image"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(("path", "data"), MODELS)
def test_model_is_right_on_91_percent_of_the_test_images(path, data: Callable[[], fashion_mnist.Batches]):
    model = Inference(onnx.load(path))
    right = [model(batch)[model.outputs[0]].argmax(1) == batch["label"] for batch in islice(data(), 32)]
    assert np.concatenate(right).mean() >= 0.91


def test_slice_is_class_balanced_and_at_most_8_megabytes():
    splits = [fashion_mnist.train(), fashion_mnist.validation(), fashion_mnist.test()]
    assert [np.bincount(split.labels).tolist() for split in splits] == [[900] * 10, [100] * 10, [1000] * 10]
    assert fashion_mnist.SLICE.stat().st_size <= 8_000_000


def test_no_image_is_in_two_splits():
    splits = [fashion_mnist.train(), fashion_mnist.validation()]
    train, validation = ({image.tobytes() for image in split.images} for split in splits)
    assert not train & validation


def test_an_epoch_is_repeatable_and_differs_from_the_next():
    data = fashion_mnist.train()
    first, again = next(iter(data)), next(iter(data))
    data.set_epoch(1)
    other = next(iter(data))
    assert np.array_equal(first["image"], again["image"])
    assert not np.array_equal(first["label"], other["label"])


def test_both_layouts_hold_the_same_images():
    channel_first, channel_last = next(iter(fashion_mnist.train())), next(iter(fashion_mnist.train_nhwc()))
    assert channel_first["image"].shape == (64, 1, 28, 28)
    assert np.array_equal(channel_first["image"].transpose(0, 2, 3, 1), channel_last["image"])


def test_flip_and_shift_moves_every_image_by_at_most_two_pixels():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 14, 13] = 255
    moved = fashion_mnist.flip_and_shift(np.repeat(image, 500, axis=0), np.random.default_rng(0))
    _, rows, columns = np.nonzero(moved)
    assert len(rows) == 500
    assert set(rows) == {12, 13, 14, 15, 16}
    # Flipped, column 13 is column 14.
    assert set(columns) == {11, 12, 13, 14, 15, 16}


def test_full_set_that_was_not_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "FULL", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"run `python -m tools\.fetch_fashion_mnist`"):
        fashion_mnist.train_full()


def test_fetching_without_apt_names_the_other_way(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"apt-get: not found; .*put the four \*-ubyte\.gz files"):
        download(tmp_path)


def test_package_of_another_version_is_refused(tmp_path):
    package = tmp_path / "dataset-fashion-mnist_1_all.deb"
    package.write_bytes(b"another")
    with pytest.raises(FetchError, match="its sha256 is"):
        check(package)
