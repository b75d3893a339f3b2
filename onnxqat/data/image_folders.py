"""Folders of images: a folder for each class, or images alone; each is decoded when its batch is due."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.data.indexed import Indexed
from onnxqat.data.pixels import ImageLayout, Pixels
from onnxqat.errors import InputError, MissingExtraError
from onnxqat.process.foreign import guarded

log = logging.getLogger(__name__)

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
Numbers = float | tuple[float, ...]


class Picture(Protocol):
    """An image that is not a file of its own."""

    def open(self) -> IO[bytes]:
        """Its bytes."""


@dataclass(frozen=True)
class Images:
    """Reads images of a folder, or of tar files.

    Attributes:
        folder: the folder.
        files: the images.
        labels: the class of each; None where the folder has no folder for each class.
        pixels: how images become arrays.
        input: the model's input; None until the model is known.
    """

    folder: Path
    files: tuple[Path | Picture, ...] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False, compare=False)
    pixels: Pixels
    input: str | None = None

    def __len__(self) -> int:
        return len(self.files)

    def fitted(self, signature: Signature) -> Images:
        """See `Reader`."""
        if len(signature.inputs) != 1:
            raise InputError(
                f"{self.folder}: images are one input, the model takes {', '.join(map(repr, signature.inputs))}; "
                "give a function that makes batches of all"
            )
        (name,) = signature.inputs
        return replace(self, input=name, pixels=self.pixels.fitted(name, signature))

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """See `Reader`."""
        assert self.input is not None
        batch: Batch = {self.input: np.stack([self._array(self.files[row]) for row in rows])}
        return batch if self.labels is None else {**batch, "label": self.labels[rows]}

    def _array(self, file: Path | Picture) -> NDArray[np.generic]:
        from PIL import Image

        source = file if isinstance(file, Path) else file.open()
        with guarded(f"{file}: is no image that can be read", "remove or convert it"), Image.open(source) as image:
            return self.pixels.array(image)


def images(  # noqa: PLR0913  (the public interface is this flat)
    folder: str | Path,
    batch_size: int = 64,
    *,
    preset: str | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    layout: ImageLayout | None = None,
    crop: float | None = None,
    classes: str | Path | None = None,
) -> Indexed:
    """Returns the images of a folder as batches for a model; needs the extra `images`.

    A folder for each class gives labels: the classes are numbered in the order of their names, as torchvision and Keras do.
    A folder of images alone gives none. Each image is resized so that its middle fills the model's input.

    Args:
        folder: the folder.
        batch_size: images per batch.
        preset: scaling of a well-known family: "imagenet", "inception", "caffe", "clip", "unit" (0 to 1), "bytes" (0 to 255).
        size: height and width, or one number for both; None: the model's input says it.
        mean: mean of each channel of pixels from 0 to 1, instead of the preset's.
        std: deviation likewise.
        layout: "nchw" or "nhwc"; None: the model's input says it.
        crop: share of the resized image's sides that is kept; None: the preset's, or all that fits.
        classes: text file with a class on each line, whose order numbers them; folders may then be fewer.

    Raises:
        InputError: there are no images, or a setting does not fit them.
        MissingExtraError: Pillow is not installed.

    Example:
        ```python
        photos = onnxqat.data.images("photos", batch_size=32, preset="imagenet")
        qdq = onnxqat.insert("model.onnx", photos)
        ```
    """
    sides = (size, size) if isinstance(size, int) else size
    means, stds = _numbers(mean), _numbers(std)
    pixels = Pixels(preset, sides, means, stds, layout, crop)
    return Indexed(found(Path(folder), pixels, None if classes is None else Path(classes)), batch_size)


def found(folder: Path, pixels: Pixels, classes: Path | None = None) -> Images:
    """The images of a folder.

    Raises:
        InputError: there are none, or classes do not fit.
        MissingExtraError: Pillow is not installed.
    """
    check_pillow(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with a folder of images for each class")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        files = _files(folder)
        _check_any(folder, files)
        return Images(folder, files, None, pixels)
    number = _numbered(folder, [path.name for path in folders], classes)
    pairs = [(file, number[path.name]) for path in folders for file in _files(path)]
    _check_any(folder, pairs)
    labels = np.array([label for _, label in pairs], np.int64)
    named = ", ".join(f"{name} {label}" for name, label in list(number.items())[:4])
    log.info("%s: %d images of %d classes (%s%s)", folder, len(pairs), len(folders), named, ", …" * (len(number) > 4))
    return Images(folder, tuple(file for file, _ in pairs), labels, pixels)


def check_pillow(path: Path) -> None:
    """Raises MissingExtraError where images cannot be decoded."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"{path}: Pillow is not installed; run `pip install 'onnxqat[images]'`") from error


def are_in(folder: Path) -> bool:
    """Whether a folder holds images, or folders of them."""
    return any(path.suffix.lower() in ENDINGS for pattern in ("*", "*/*") for path in folder.glob(pattern))


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith(".")))


def _check_any(folder: Path, found: object) -> None:
    if not found:
        raise InputError(f"{folder}: holds no images ({', '.join(sorted(ENDINGS))}); give a folder that does")


def _numbered(folder: Path, names: list[str], classes: Path | None) -> dict[str, int]:
    """The number of each class."""
    if classes is None:
        return {name: number for number, name in enumerate(names)}
    if not classes.is_file():
        raise InputError(f"{classes}: no such file; give a text file with a class on each line")
    listed = [line.strip() for line in classes.read_text().splitlines() if line.strip()]
    number = {name: index for index, name in enumerate(listed)}
    unknown = [name for name in names if name not in number]
    if unknown:
        raise InputError(f"{folder}: class {unknown[0]!r} is not listed in {classes}; add it, or remove its folder")
    return {name: number[name] for name in names}


def _numbers(given: Numbers | None) -> tuple[float, ...] | None:
    return given if given is None or isinstance(given, tuple) else (given,)
