"""Images in tar files as WebDataset has them: an image and its class, `0001.jpg` and `0001.cls`, beside each other."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxqat.data.image_folders import ENDINGS, Images, check_pillow
from onnxqat.data.pixels import Pixels
from onnxqat.errors import InputError
from onnxqat.process.foreign import guarded


@dataclass(frozen=True)
class Part:
    """A file inside of a tar file.

    Attributes:
        shard: the tar file.
        name: name in it.
        start: where its bytes begin.
        size: how many they are.
    """

    shard: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def open(self) -> io.BytesIO:
        """The bytes."""
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.size))


def shards(files: tuple[Path, ...], pixels: Pixels) -> Images:
    """The images of tar files, of which only the headers are read now.

    Raises:
        InputError: there are none, one has no class where others have, or a file is damaged.
        MissingExtraError: Pillow is not installed.
    """
    check_pillow(files[0])
    images: dict[str, Part] = {}
    classes: dict[str, Part] = {}
    for shard in files:
        with (
            guarded(f"{shard}: is no tar file", "write it again, without compression"),
            tarfile.open(shard, "r:") as tar,
        ):
            for member in tar:
                key, ending = _split(member.name)
                part = Part(shard, member.name, member.offset_data, member.size)
                if member.isfile() and ending in ENDINGS:
                    images[f"{shard}/{key}"] = part
                elif member.isfile() and ending == ".cls":
                    classes[f"{shard}/{key}"] = part
    if not images:
        raise InputError(f"{files[0]}: holds no images ({', '.join(sorted(ENDINGS))}); give tar files that do")
    missing = [image for key, image in images.items() if key not in classes]
    if classes and missing:
        raise InputError(f"{missing[0]}: has no class (.cls) beside it, as others have; add it, or remove all classes")
    labels = np.array([_number(classes[key]) for key in images], np.int64) if classes else None
    return Images(files[0].parent, tuple(images.values()), labels, pixels)


def _split(name: str) -> tuple[str, str]:
    """Key and ending of a sample's file: the key goes up to the first dot behind the folders."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}/{key}", f".{ending.lower()}"


def _number(part: Part) -> int:
    text = part.open().read(64).decode(errors="replace").strip()
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{part}: holds {text!r}, no number of a class; write one") from None
