"""Fashion-MNIST as batches of ``{"image": float32, "label": int64}``.

Every public function here is usable as ``DATA`` on onnxqat's command line, e.g. ``models.fashion_mnist:train``.
The names ending in ``_nhwc`` give the images as [N, 28, 28, 1], as Keras models take them, the others as [N, 1, 28, 28].

The slice ``fashion_mnist.npz`` beside this file holds the 10,000 test images and 10,000 of the training images: the first
900 of each class for training, the last 100 of each class for validation, so that choosing a model never looks at a test
image. ``train_full`` needs the whole set (``python -m tools.fetch_fashion_mnist``) and leaves out the validation images too.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SLICE = Path(__file__).with_suffix(".npz")
FULL = Path(__file__).parents[1] / ".cache" / "fashion-mnist"
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# Of the 60,000 training images, pixels scaled to 0…1.
MEAN, DEVIATION = 0.2860, 0.3530
BATCH = 64
CALIBRATION_IMAGES = 512
MAX_SHIFT = 2


@dataclass
class Batches:
    """Batches of one split; may be iterated over again, and gives the same batches for the same epoch.

    Attributes:
        images: uint8 [N, 28, 28].
        labels: int64 [N], 0…9.
        channel_axis: where the channel goes: 1 for NCHW, 3 for NHWC.
        augment: shuffle, flip left to right and shift by up to two pixels, anew in every epoch; drop a last batch that is
            not full.
        epoch: which epoch's shuffling to give.
    """

    images: np.ndarray
    labels: np.ndarray
    channel_axis: int
    augment: bool
    epoch: int = field(default=0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, under the name that PyTorch's samplers use, so that a resumed run sees the same order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.labels) // BATCH if self.augment else -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield {"image": standardised float32, "label": int64}."""
        rng = np.random.default_rng(self.epoch)
        order = rng.permutation(len(self.labels)) if self.augment else np.arange(len(self.labels))
        for start in range(0, len(self) * BATCH, BATCH):
            chosen = order[start : start + BATCH]
            images = self.images[chosen]
            if self.augment:
                images = flip_and_shift(images, rng)
            yield {"image": standardise(images, self.channel_axis), "label": self.labels[chosen]}


def standardise(images: np.ndarray, channel_axis: int) -> np.ndarray:
    """Scale uint8 [N, 28, 28] to float32 of zero mean and unit deviation, with a channel axis of length 1."""
    scaled = (images.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.expand_dims(scaled.astype(np.float32), channel_axis)


def flip_and_shift(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip half of the images and move each by up to two pixels, filling with black; uint8 [N, 28, 28] to the same."""
    count = len(images)
    flipped = np.where(rng.random(count)[:, None, None] < 0.5, images[:, :, ::-1], images)
    padded = np.pad(flipped, ((0, 0), (MAX_SHIFT, MAX_SHIFT), (MAX_SHIFT, MAX_SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:], axis=(1, 2))
    down, right = rng.integers(0, 2 * MAX_SHIFT + 1, (2, count))
    return windows[np.arange(count), down, right]


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "file formats")."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_full(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read all images and labels of the fetched set; `split` is "train" (60,000) or "t10k" (10,000)."""
    if not FULL.is_dir():
        raise FileNotFoundError(f"{FULL}: the full set is not there; run `python -m tools.fetch_fashion_mnist`")
    return read_idx(FULL / f"{split}-images-idx3-ubyte.gz"), read_idx(FULL / f"{split}-labels-idx1-ubyte.gz")


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return for each image how many of its class come before it."""
    ranks = np.empty(len(labels), np.int64)
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label)
        ranks[members] = np.arange(len(members))
    return ranks


def _read_slice(split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(SLICE, allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64)


def _train(channel_axis: int) -> Batches:
    return Batches(*_read_slice("train"), channel_axis, augment=True)


def _train_full(channel_axis: int) -> Batches:
    images, labels = read_full("train")
    kept = rank_in_class(labels) < 5_900
    return Batches(images[kept], labels[kept].astype(np.int64), channel_axis, augment=True)


def _validation(channel_axis: int) -> Batches:
    return Batches(*_read_slice("validation"), channel_axis, augment=False)


def _calibration(channel_axis: int) -> Batches:
    images, labels = _read_slice("train")
    return Batches(images[:CALIBRATION_IMAGES], labels[:CALIBRATION_IMAGES], channel_axis, augment=False)


def _test(channel_axis: int) -> Batches:
    return Batches(*_read_slice("test"), channel_axis, augment=False)


def train() -> Batches:
    """Return 9,000 training images, augmented."""
    return _train(1)


def train_full() -> Batches:
    """Return 59,000 training images, augmented; needs the fetched set."""
    return _train_full(1)


def validation() -> Batches:
    """Return 1,000 images held out from training."""
    return _validation(1)


def calibration() -> Batches:
    """Return 512 training images, as they are."""
    return _calibration(1)


def test() -> Batches:
    """Return the 10,000 test images."""
    return _test(1)


def train_nhwc() -> Batches:
    """Return what `train` does, channel last."""
    return _train(3)


def train_full_nhwc() -> Batches:
    """Return what `train_full` does, channel last."""
    return _train_full(3)


def validation_nhwc() -> Batches:
    """Return what `validation` does, channel last."""
    return _validation(3)


def calibration_nhwc() -> Batches:
    """Return what `calibration` does, channel last."""
    return _calibration(3)


def test_nhwc() -> Batches:
    """Return what `test` does, channel last."""
    return _test(3)
