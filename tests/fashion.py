"""Images of Fashion-MNIST in files, as the command line reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models import fashion_mnist

ARRAYS = Path(fashion_mnist.__file__).with_name("fashion_mnist.npz")


def write(folder: Path, **parts: slice) -> None:
    """Writes parts of the training set, for a model of channels-last images: one file of each name."""
    with np.load(ARRAYS) as arrays:
        for name, rows in parts.items():
            images, labels = arrays["train_images"][rows], arrays["train_labels"][rows].astype(np.int64)
            np.savez(folder / f"{name}.npz", image=fashion_mnist.standardise(images, 3), label=labels)
