"""Super-resolution (ESRGAN slim, 2×): photos at half their size, to be restored to full size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.packages import FOLDER
from tools.real_models.model import Data, Examples

TEST = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "astronaut.png", "retina.jpg")
#: Side of a training picture at half size, and of the middle part of a photo that is judged.
CROP, JUDGED = 24, 128
BATCH = 8


def data(train: int, test: int) -> Data:
    """Random crops of some photos for training; the middle of `test` others to judge by."""
    folder = FOLDER / "photos"
    others = [_pixels(path.name) for path in sorted(folder.iterdir()) if path.name not in TEST]
    random = np.random.default_rng(1)
    batches = []
    for start in range(0, train, BATCH):
        crops = [_crop(others[random.integers(len(others))], random) for _ in range(min(BATCH, train - start))]
        batches.append(Examples({"LR": np.stack([_halved(c) for c in crops])}, crops))
    judged = [_middle(_pixels(name)) for name in TEST[:test]]
    return Data(batches, [Examples({"LR": _halved(photo)[None]}, [photo]) for photo in judged], _mean_psnr)


def _pixels(name: str) -> NDArray[np.uint8]:
    """[H, W, 3]."""
    return np.asarray(Image.open(FOLDER / "photos" / name).convert("RGB"))


def _crop(photo: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    top, left = (int(random.integers(side - 2 * CROP + 1)) for side in photo.shape[:2])
    return photo[top : top + 2 * CROP, left : left + 2 * CROP]


def _middle(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = ((side - 2 * JUDGED) // 2 for side in photo.shape[:2])
    return photo[top : top + 2 * JUDGED, left : left + 2 * JUDGED]


def _halved(photo: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H, W, 3] → [H/2, W/2, 3] in [0, 1]."""
    height, width = photo.shape[:2]
    small = Image.fromarray(photo).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return np.asarray(small, np.float32) / 255


def _mean_psnr(outputs: list[NDArray[np.float32]], labels: list[NDArray[np.uint8]]) -> float:
    """Peak signal-to-noise ratio in dB, mean over the photos."""
    photos = [row for output in outputs for row in output]
    errors = [np.mean((np.clip(p, 0, 1) - t / 255) ** 2) for p, t in zip(photos, labels, strict=True)]
    return float(np.mean(-10 * np.log10(errors)))
