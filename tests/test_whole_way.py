"""Whole way from a framework's trained model to integer kernels and back to the framework's own predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from keras import layers
from torch import nn
from torch.nn import functional

import onnxqat
from models import fashion_mnist
from onnxqat.training.trainer import Trainer
from tests.command_line import status_of
from tests.models import operators

# Keras 3.15 calls NumPy 2 in ways it has deprecated, when it saves and when it exports.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras", "ignore:__array__ implementation:DeprecationWarning")
]
EPOCHS = 5


class Net(nn.Module):
    """A residual around a depthwise and a pointwise convolution; noise and dropout in training alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.depthwise_norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.down, self.down_norm = nn.Conv2d(16, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(7 * 7 * 16, 10)

    def forward(self, image):
        x = functional.relu6(self.stem_norm(self.stem(image)))
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        y = functional.relu(self.depthwise_norm(self.depthwise(x)))
        x = functional.relu(x + self.pointwise(y))
        x = functional.relu(self.down_norm(self.down(x)))
        return self.head(self.drop(x.flatten(1)))


@dataclass(frozen=True)
class Original:
    """A trained model of a framework, with what the stages need of it.

    Attributes:
        predict: its own class scores for images of its layout.
        command: arguments of `onnxqat export`.
        suffix: which functions of `models.fashion_mnist` give its layout.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    command: list[str]
    suffix: str


def examples(suffix: str) -> list[dict[str, np.ndarray]]:
    """1,512 images as they are, in batches of 64; none of them a test image."""
    return [*getattr(fashion_mnist, f"validation{suffix}")(), *getattr(fashion_mnist, f"calibration{suffix}")()]


@cache
def trained_in_torch() -> nn.Module:
    """Returns what `onnxqat export torch` calls, too."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for batch in examples("") * EPOCHS:
        optimizer.zero_grad()
        image, label = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])
        functional.cross_entropy(net(image), label).backward()
        optimizer.step()
    return net


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(10),
        ]
    )


def functional_api() -> keras.Model:
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.GaussianNoise(0.1)(x)
    y = layers.DepthwiseConv2D(3, padding="same")(x)
    y = layers.Conv2D(16, 1)(layers.ReLU()(layers.BatchNormalization(momentum=0.8)(y)))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def trained_in_keras(model: keras.Model) -> keras.Model:
    keras.utils.set_random_seed(0)
    logits = not isinstance(model.layers[-1], layers.Dense) or model.layers[-1].activation.__name__ == "linear"
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=logits))
    images, labels = (np.concatenate([b[name] for b in examples("_nhwc")]) for name in ("image", "label"))
    model.fit(images, labels, batch_size=64, epochs=EPOCHS, verbose=0)
    return model


def from_torch(_: Path) -> Original:
    net = trained_in_torch().eval()

    def predict(images):
        with torch.no_grad():
            return net(torch.from_numpy(images)).numpy()

    return Original(predict, ["torch", f"{__name__}:trained_in_torch", "--input", "2,1,28,28"], "")


def keras_file(make: Callable[[], keras.Model]) -> Callable[[Path], Original]:
    def original(folder: Path) -> Original:
        model = trained_in_keras(make())
        model.save(folder / "model.keras")
        return Original(lambda x: model.predict(x, verbose=0), ["keras", str(folder / "model.keras")], "_nhwc")

    return original


def saved_model(make: Callable[[], keras.Model]) -> Callable[[Path], Original]:
    def original(folder: Path) -> Original:
        model = trained_in_keras(make())
        model.export(folder / "saved", verbose=False)
        return Original(lambda x: model.predict(x, verbose=0), ["keras", str(folder / "saved")], "_nhwc")

    return original


WAYS = {
    "PyTorch module": from_torch,
    "Keras Sequential, .keras file": keras_file(sequential),
    "Keras Functional, SavedModel": saved_model(functional_api),
}


def scores(model: onnx.ModelProto | str, images: np.ndarray, rows: int) -> np.ndarray:
    given = model if isinstance(model, str) else model.SerializeToString()
    session = ort.InferenceSession(given, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[i : i + rows]})[0] for i in range(0, len(images), rows)])


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
def test_a_trained_model_goes_all_the_way_and_answers_as_its_framework(make, tmp_path):
    original = make(tmp_path)
    held_out = list(islice(getattr(fashion_mnist, f"test{original.suffix}")(), 16))
    images, labels = (np.concatenate([b[name] for b in held_out]) for name in ("image", "label"))
    expected = original.predict(images)

    assert status_of("export", *original.command, "-o", tmp_path / "float.onnx") == 0
    float_model = onnx.load(tmp_path / "float.onnx")
    assert not {"Dropout", "RandomNormalLike", "RandomNormal"} & set(operators(float_model))
    assert float_model.opset_import[0].version == 17
    assert float_model.ir_version <= 10
    assert float_model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for rows in (1, 64, 1000):
        # the same numbers as in the framework, whatever the batch
        found = scores(float_model, images[:rows], rows)
        np.testing.assert_allclose(found, expected[:rows], atol=1e-4 * max(1, np.abs(expected).max()))

    qdq = onnxqat.insert(float_model, examples(original.suffix)[:8])
    trainer = Trainer(qdq, loss={"distill": 1.0}, teacher=float_model, optimizer=onnxqat.AdamW(lr=3e-4))
    trainer.fit(examples(original.suffix), epochs=1)
    trained = trainer.model()
    deployed = onnxqat.fold(trained)
    report = onnxqat.verify(trained, deployed, held_out)

    found = scores(deployed, images, 50)
    agreement = (found.argmax(1) == expected.argmax(1)).mean()
    accuracy, original_accuracy = ((s.argmax(1) == labels).mean() for s in (found, expected))
    assert original_accuracy > 0.7
    assert agreement >= 0.98
    assert accuracy > original_accuracy - 0.01
    assert report.agreement >= 0.99
    integer, layers_with_weights = report.integer_count()
    assert integer == layers_with_weights
