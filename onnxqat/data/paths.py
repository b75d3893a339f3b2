"""Contents of a path: arrays, a table, images, a dataset; each read in its own way, all as rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onnxqat.data import hub, image_folders, shards, tables
from onnxqat.data.columns import Columns
from onnxqat.data.indexed import Indexed
from onnxqat.data.pixels import Pixels
from onnxqat.data.rows import Arrays, NpzFile, Rows
from onnxqat.errors import InputError
from onnxqat.process.foreign import described

log = logging.getLogger(__name__)

_FORMS = (
    "an .npz, .csv, .parquet or .tar file, a folder of these, of .npy files or of images, or package.module:function"
)


@dataclass(frozen=True)
class Form:
    """Settings of how files become a model's inputs, where their kind leaves it open.

    Attributes:
        columns: arrays and columns by the input that they become.
        pixels: how images become arrays.
        classes: file of the classes of images, in order.
    """

    columns: Columns = field(default_factory=Columns)
    pixels: Pixels = field(default_factory=Pixels)
    classes: Path | None = None

    def check_used(self, where: object, *, columns: bool = False, pixels: bool = False) -> None:
        """Raises InputError where a setting is given that this kind of data does not have."""
        if self.columns.names and not columns:
            raise InputError(f"{where}: has no names that --map could choose from; leave --map out")
        if (self.pixels != Pixels() or self.classes is not None) and not pixels:
            raise InputError(f"{where}: holds no images; leave options for images out")


def read(
    path: str | Path, batch_size: int = 64, *, map: Mapping[str, str | Sequence[str]] | None = None
) -> Rows | Arrays | Indexed:
    """Returns the rows of a file or folder of arrays, tables or datasets as batches, under the names of a model's inputs.

    Args:
        path: an `.npz`, `.csv` or `.parquet` file, a folder of these or of `.npy` files, or a saved Hugging Face dataset.
        batch_size: rows per batch.
        map: array or column that an input (or label) is read from, or several columns that it is made of; None: all by their
            names, and all columns of a table but `label` as a model's only input.

    Raises:
        InputError: nothing that can be read is there.
        MissingExtraError: a library that reads it is not installed.

    Example:
        ```python
        rows = onnxqat.data.read("train.npz", batch_size=32, map={"image": "image"})
        qdq = onnxqat.insert("model.onnx", rows)
        ```
    """
    names = {name: (one,) if isinstance(one, str) else tuple(one) for name, one in (map or {}).items()}
    return opened(Path(path), batch_size, Form(Columns(names)))


def opened(path: Path, batch_size: int, form: Form) -> Rows | Arrays | Indexed:
    """The rows of a path.

    Raises:
        InputError: nothing that can be read is there, or a setting does not belong to it.
    """
    if path.is_dir():
        return _folder(path, batch_size, form)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give {_FORMS}")
    if path.suffix == ".tar":
        return _shards((path,), batch_size, form)
    form.check_used(path, columns=True)
    if path.suffix in tables.ENDINGS:
        return _table((path,), batch_size, form)
    return Arrays((NpzFile(path),), batch_size, columns=form.columns)


def _folder(folder: Path, batch_size: int, form: Form) -> Rows | Arrays | Indexed:
    if hub.is_there(folder):
        form.check_used(folder, columns=True, pixels=form.classes is None)
        return Indexed(hub.dataset(folder, form.columns, form.pixels), batch_size)
    for ending in (".npz", *tables.ENDINGS, ".npy"):
        files = _files(folder, ending)
        if files:
            form.check_used(folder, columns=True)
            if ending == ".npy":
                return _memory_mapped(files, batch_size, form)
            if ending == ".npz":
                return Arrays(tuple(map(NpzFile, files)), batch_size, columns=form.columns)
            return _table(files, batch_size, form)
    tars = _files(folder, ".tar")
    if tars:
        return _shards(tars, batch_size, form)
    if image_folders.are_in(folder):
        form.check_used(folder, pixels=True)
        return Indexed(image_folders.found(folder, form.pixels, form.classes), batch_size)
    raise InputError(f"{folder}: the folder holds no .npz file, table, image or dataset; give {_FORMS}")


def _shards(files: tuple[Path, ...], batch_size: int, form: Form) -> Indexed:
    form.check_used(files[0], pixels=form.classes is None)
    return Indexed(shards.shards(files, form.pixels), batch_size)


def _table(files: tuple[Path, ...], batch_size: int, form: Form) -> Arrays:
    found = [tables.parts(file) for file in files]
    for file, (_, names) in zip(files, found, strict=True):
        if names != found[0][1]:
            raise InputError(f"{file}: has other columns than {files[0]}; give tables of the same columns")
    return Arrays(tuple(p for parts, _ in found for p in parts), batch_size, columns=form.columns, table=found[0][1])


def _memory_mapped(files: tuple[Path, ...], batch_size: int, form: Form) -> Rows:
    """Arrays of `.npy` files under the names of these, read from there row by row."""
    arrays = {}
    for file in files:
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # whatever damaged bytes set off
            raise InputError(
                f"{file}: not an array of numbers ({described(error)}); write it with numpy.save"
            ) from error
    return Rows(form.columns.batch(arrays, str(files[0].parent)), batch_size, str(files[0].parent))


def _files(folder: Path, ending: str) -> tuple[Path, ...]:
    """The files of a folder with an ending, without hidden ones, which systems leave there, and links to nothing."""
    found = sorted(folder.glob(f"*{ending}"))
    files = tuple(path for path in found if not path.name.startswith(".") and path.is_file())
    for stray in [path for path in found if path not in files]:
        log.warning("%s: skipped, a hidden file or a link to nothing", stray)
    return files
