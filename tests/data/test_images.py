import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import onnxqat
from onnxqat.data import sources
from onnxqat.data.paths import Form
from onnxqat.data.pixels import Pixels
from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model

COLOURS = {"cat": (255, 0, 51), "dog": (0, 102, 204)}


def net(shape="3,8,8", kind="float"):
    return io.load(model(f"({kind}[N,{shape}] image) => ({kind}[N,{shape}] y) {{ y = Identity(image) }}"))


@pytest.fixture
def photos(tmp_path):
    """Six images of a colour for each class, wide and tall, of several modes."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(6):
            image = Image.new("RGB", (20, 12) if number % 2 else (9, 30), colour)
            (image.convert("RGBA") if number == 5 else image).save(tmp_path / name / f"{number}.png")
    return tmp_path


def read(folder, of=None, **settings):
    return list(sources.batches(onnxqat.data.images(folder, **settings), of or net()))


def test_images_are_scaled_and_laid_out_as_the_preset_and_the_model_say(photos):
    (batch,) = read(photos, preset="imagenet")
    expected = (np.array(COLOURS["dog"]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert batch["image"].shape == (12, 3, 8, 8)
    np.testing.assert_allclose(batch["image"][-1].transpose(1, 2, 0), np.broadcast_to(expected, (8, 8, 3)), rtol=1e-6)
    assert batch["label"].tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize(
    ("shape", "kind", "settings", "expected"),
    [
        ("8,8,3", "float", {"preset": "unit"}, [1, 0, 0.2]),
        ("8,8,3", "float", {"mean": 0.5, "std": 0.5}, [1, -1, -0.6]),
        ("8,8,3", "float", {"preset": "caffe"}, [51 - 103.939, -116.779, 255 - 123.68]),
        ("H,W,C", "float", {"preset": "unit", "size": (4, 6), "layout": "nhwc"}, [1, 0, 0.2]),
        ("8,8,3", "uint8", {}, [255, 0, 51]),
        ("8,8,1", "float", {"preset": "bytes"}, [82]),  # ITU-R 601: 0.299 · 255 + 0.114 · 51
    ],
    ids=["0 to 1", "mean and deviation", "blue first", "free sizes", "bytes", "grey"],
)
def test_first_pixel_is(photos, shape, kind, settings, expected):
    (batch,) = read(photos, net(shape, kind), **settings)
    np.testing.assert_allclose(batch["image"][0, 0, 0], expected, rtol=1e-5)


def test_middle_is_cropped_from_the_resized_image(tmp_path):
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    (batch,) = read(tmp_path, net("8,8,3"), preset="bytes")
    assert batch["image"][0, 3, :, 1].tolist() == list(range(4, 12))
    assert "label" not in batch


def test_file_of_classes_numbers_them(photos):
    classes = photos / "classes.txt"
    classes.write_text("bird\ndog\ncat\n")
    (batch,) = read(photos, preset="unit", classes=classes)
    assert batch["label"].tolist() == [2] * 6 + [1] * 6


def test_order_is_that_of_the_seed_and_the_epoch(photos):
    source = sources.batches(onnxqat.data.images(photos, 5, preset="unit"), net())

    def labels(epoch, seed=0):
        return np.concatenate([batch["label"] for batch in source.epoch(epoch, seed)]).tolist()

    assert labels(0) == labels(0)
    assert len({tuple(labels(epoch)) for epoch in range(4)} | {tuple(labels(0, 1))}) == 5
    assert len(source) == 3


def jittered(batch):
    """A batch of other brightness, by NumPy's own random numbers."""
    return {**batch, "image": batch["image"] * np.random.uniform(0.5, 1.5, (len(batch["image"]), 1, 1, 1)).astype("f4")}


def test_run_over_images_that_is_broken_off_resumes_to_the_same_weights(photos, tmp_path_factory):
    text = "(float[N,3,8,8] image) => (float[N,2] y) { p = GlobalAveragePool(image) f = Flatten(p) y = Gemm(f, w) }"
    float_model = model(text, w=np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))
    data = onnxqat.data.images(photos, 4, preset="unit")
    qdq = onnxqat.insert(float_model, data)
    whole, begun = onnxqat.Trainer(qdq, seed=3), onnxqat.Trainer(qdq, seed=3)
    np.random.seed(0)
    whole.fit(data, epochs=2, augment=jittered)
    path = tmp_path_factory.mktemp("run") / "run.checkpoint"

    class StopAfterFour(onnxqat.callbacks.Callback):
        def on_step_end(self, trainer, loss):
            if trainer.schedule.position.step == 4:
                trainer.save(path)
                trainer.stop = True

    np.random.seed(0)
    begun.fit(data, epochs=2, augment=jittered, callbacks=[StopAfterFour()])
    resumed = onnxqat.Trainer.restore(path)
    np.random.seed(9)
    resumed.fit(data, epochs=2, augment=jittered)
    plain = onnxqat.Trainer(qdq, seed=3)
    plain.fit(data, epochs=2)
    assert not np.array_equal(plain.state.parameters, whole.state.parameters)
    assert all(np.array_equal(resumed.parameters[name], array) for name, array in whole.parameters.items())


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        (net(), {}, "nothing says how its pixels are scaled"),
        (net(), {"preset": "cifar"}, "preset 'cifar': is not known; use imagenet"),
        (net(), {"mean": 0.5}, "of mean and deviation one is given"),
        (net(), {"mean": 0.5, "std": 0.0}, "must be above 0"),
        (net(), {"preset": "unit", "size": 9}, "image size is 9x9, input 'image' takes 8x8"),
        (net("3,H,W"), {"preset": "unit"}, "takes images of any size; give --image-size"),
        (net("H,W,C"), {"preset": "unit", "size": 8}, "does not show where the channels are"),
        (net("8,8"), {"preset": "unit"}, "has 3 axes, images have 4"),
        (net("4,8,8"), {"preset": "unit"}, "does not show where the channels are"),
        (net("8,8,3", "uint8"), {"preset": "imagenet"}, "takes pixels as uint8, unscaled"),
        (net(), {"preset": "unit", "crop": 1.5}, "must be above 0 and at most 1"),
        (net(), {"preset": "unit", "classes": "none.txt"}, "none.txt: no such file"),
        (net(), {"preset": "unit", "batch_size": 0}, "batch size is 0"),
    ],
)
def test_setting_that_does_not_fit_is_refused(photos, of, settings, message):
    with pytest.raises(InputError, match=message) as caught:
        read(photos, of, **settings)
    assert "\n" not in str(caught.value)


def test_damaged_image_is_named(photos):
    (photos / "cat" / "7.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"7\.png: is no image that can be read"):
        read(photos, preset="unit")


def test_class_that_is_not_listed_is_refused(photos):
    (photos / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match="class 'dog' is not listed"):
        read(photos, preset="unit", classes=photos / "classes.txt")


def test_command_line_takes_a_folder_of_images(call, photos, tmp_path_factory):
    text = "(float[N,3,8,8] image) => (float[N,2] y) { p = GlobalAveragePool(image) f = Flatten(p) y = Gemm(f, w) }"
    folder = tmp_path_factory.mktemp("model")
    onnxqat.save(model(text, w=np.array([[-9, 9], [0, 0], [0, 0]], np.float32)), folder / "m.onnx")
    call_of = ("eval", folder / "m.onnx", "--data", photos)
    assert call(*call_of, "--image-preset", "unit", "--image-size", "8x8")[:2] == (0, "accuracy 0.0000\n")
    (photos / "classes.txt").write_text("dog\ncat\n")
    swapped = call(*call_of, "--image-mean", "0", "--image-std", "1,1,1", "--classes", photos / "classes.txt")
    assert swapped[:2] == (0, "accuracy 1.0000\n")
    for wrong in (("--image-size", "8y8"), ("--image-layout", "abc"), ("--map", "image=x")):
        status, _, message = call(*call_of, "--image-preset", "unit", *wrong)
        assert status == 2
        assert wrong[0] in message


def sharded(photos, names):
    """A tar file of the first image of each class, with or without classes."""
    with tarfile.open(photos / "a.tar", "w") as tar:
        for number, name in enumerate(COLOURS):
            tar.add(photos / name / "0.png", f"x/{number}.png")
            if name in names:
                content = str(7 + number).encode()
                member = tarfile.TarInfo(f"x/{number}.cls")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return photos / "a.tar"


@pytest.mark.parametrize("names", [list(COLOURS), []], ids=["classes", "no classes"])
def test_tar_file_of_images_is_read_at_any_place(photos, names):
    (batch,) = sources.batches(sources.read(sharded(photos, names), 4, Form(pixels=Pixels("unit"))), net("8,8,3"))
    np.testing.assert_allclose(255 * batch["image"][:, 0, 0], list(COLOURS.values()), rtol=1e-5)
    assert batch.get("label", np.zeros(0)).tolist() == [7, 8][: len(names)]


def test_tar_file_that_lacks_classes_or_is_none_is_refused(photos, tmp_path_factory):
    path = sharded(photos, ["cat"])
    with pytest.raises(InputError, match=r"a\.tar: x/1\.png: has no class"):
        sources.read(path, 4, Form(pixels=Pixels("unit")))
    broken = tmp_path_factory.mktemp("tar") / "b.tar"
    broken.write_bytes(b"abc")
    with pytest.raises(InputError, match=r"b\.tar: is no tar file"):
        sources.read(broken, 4)
