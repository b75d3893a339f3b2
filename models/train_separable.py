"""Train a depthwise-separable network on Fashion-MNIST in Keras and export it to models/separable.onnx.

python -m tools.fetch_fashion_mnist && python -m models.train_separable
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from keras import layers

import onnxqat.export.keras
from models import fashion_mnist

OUTPUT = Path(__file__).with_name("separable.onnx")


def block(x: keras.KerasTensor, filters: int, stride: int, activation: str, name: str) -> keras.KerasTensor:
    """Depthwise 3x3 and pointwise 1x1 convolution (Howard et al. 2017, figure 3), with a shortcut where shapes allow it."""
    y = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    y = layers.BatchNormalization(name=f"{name}_norm1")(y)
    y = layers.Activation(activation, name=f"{name}_act1")(y)
    y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise")(y)
    y = layers.BatchNormalization(name=f"{name}_norm2")(y)
    if stride == 1 and x.shape[-1] == filters:
        y = layers.Add(name=f"{name}_add")([x, y])
    return layers.Activation(activation, name=f"{name}_act2")(y)


def build() -> keras.Model:
    """Map images [N, 28, 28, 1] to probabilities [N, 10]: ReLU6 down to 14x14, ReLU from there on."""
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = layers.ReLU(6.0, name="stem_act")(x)
    x = block(x, 64, 2, "relu6", "block1")
    x = block(x, 64, 1, "relu6", "block2")
    x = block(x, 64, 1, "relu6", "block3")
    x = block(x, 128, 2, "relu", "block4")
    x = block(x, 128, 1, "relu", "block5")
    x = block(x, 128, 1, "relu", "block6")
    x = layers.SeparableConv2D(192, 3, padding="same", activation="relu", name="head")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    x = layers.Dense(len(fashion_mnist.CLASSES), activation="softmax", name="probabilities")(x)
    return keras.Model(image, x, name="separable")


def endless(batches: fashion_mnist.Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield epoch after epoch, each shuffled and augmented anew, as Keras takes it."""
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        for batch in batches:
            yield batch["image"], batch["label"]


def whole(batches: fashion_mnist.Batches) -> tuple[np.ndarray, np.ndarray]:
    """Return all images and labels of a split that is not augmented."""
    return fashion_mnist.standardise(batches.images, batches.channel_axis), batches.labels


def train(epochs: int, seed: int, rate: float = 3e-3) -> keras.Model:
    """Train with AdamW (decay 0.02) under warm-up and cosine; the last epoch's model is kept."""
    keras.utils.set_random_seed(seed)
    model = build()
    batches = fashion_mnist.train_full_nhwc()
    steps = epochs * len(batches)
    warmup = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.02)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        endless(batches),
        epochs=epochs,
        steps_per_epoch=len(batches),
        validation_data=whole(fashion_mnist.validation_nhwc()),
        shuffle=False,
        verbose=2,
    )
    return model


def main() -> None:
    """Train, print the accuracy on the 10,000 test images, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = train(arguments.epochs, arguments.seed)
    _, accuracy = model.evaluate(*whole(fashion_mnist.test_nhwc()), batch_size=500, verbose=0)
    print(f"test accuracy {accuracy:.2%}")
    onnxqat.export.keras.export(model, OUTPUT)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
