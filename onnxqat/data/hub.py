"""Datasets of Hugging Face's library, as `Dataset.save_to_disk` wrote them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.data.columns import Columns
from onnxqat.data.pixels import Pixels
from onnxqat.errors import InputError, MissingExtraError
from onnxqat.process.foreign import guarded


@dataclass(frozen=True)
class Dataset:
    """Reads rows of a dataset.

    Attributes:
        where: its folder.
        rows: the dataset.
        columns: the choice of columns.
        pixels: how images become arrays.
    """

    where: Path
    rows: Any = field(repr=False, compare=False)
    columns: Columns
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.rows)

    def fitted(self, signature: Signature) -> Dataset:
        """See `Reader`."""
        pictures = self._pictures
        names = self.columns.names
        (name, *others) = signature.inputs
        if len(pictures) == 1 and not others and name not in {*names, *self.rows.column_names}:
            names = {**names, name: pictures}
        chosen = Columns(names).fitted(self.rows.column_names, signature, str(self.where))
        read = chosen.names or {name: (name,) for name in signature.inputs}
        shown = [name for name, columns in read.items() if set(columns) & set(pictures)]
        pixels = self.pixels.fitted(shown[0], signature) if shown else self.pixels
        return replace(self, columns=chosen, pixels=pixels)

    def read(self, rows: NDArray[np.int64]) -> Batch:
        """See `Reader`."""
        wanted = self.columns.wanted(self.rows.column_names) or self.rows.column_names
        arrays: dict[str, NDArray[Any]] = {}
        with guarded(f"{self.where}: cannot be read"):
            numbers = [name for name in wanted if name in self.rows.column_names and name not in self._pictures]
            if numbers:
                arrays |= self.rows.with_format("numpy", columns=numbers)[rows.tolist()]
            for name in set(wanted) & set(self._pictures):
                images = self.rows.select_columns([name])[rows.tolist()][name]
                arrays[name] = np.stack([self.pixels.array(image) for image in images])
        return self.columns.batch(arrays, str(self.where))

    @property
    def _pictures(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.rows.features.items() if type(kind).__name__ == "Image")


def is_there(folder: Path) -> bool:
    """Whether a folder is a dataset, or several by name."""
    return any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def dataset(folder: Path, columns: Columns, pixels: Pixels) -> Dataset:
    """The dataset of a folder.

    Raises:
        InputError: it cannot be loaded, is several, or is empty.
        MissingExtraError: the library is not installed.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingExtraError(
            f"{folder}: datasets is not installed; run `pip install 'onnxqat[datasets]'`"
        ) from error
    with guarded(f"{folder}: is no dataset that can be loaded", "write it again by save_to_disk"):
        rows = load_from_disk(folder)
    if isinstance(rows, dict):
        raise InputError(f"{folder}: holds the datasets {', '.join(rows)}; give the folder of one of them")
    if not len(rows):
        raise InputError(f"{folder}: holds no rows; give a dataset that does")
    return Dataset(folder, rows, columns, pixels)
