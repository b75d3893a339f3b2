"""Rows of arrays, in memory or in `.npz` files, cut into batches and shuffled in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.errors import InputError
from onnxqat.process.foreign import described

#: A file that unpacks to more bytes than this, and to this many times its own size, cannot be real data and is refused.
LARGEST_UNPACKED = 2**30
LARGEST_RATIO = 50


@dataclass(frozen=True)
class Rows:
    """Whole arrays in memory, cut into batches; `Trainer.fit` shuffles them in every epoch.

    Attributes:
        arrays: arrays by name of input or label; their first axis counts the same rows.
        batch_size: rows per batch; the last one may be smaller.
        where: name of the arrays in messages.
        axes: axis that counts rows, by name of array, where it is not the first (time-first recurrent networks).

    Example:
        ```python
        batches = onnxqat.data.Rows({"image": images, "label": labels}, batch_size=32)
        qdq = onnxqat.insert("model.onnx", batches)
        ```
    """

    arrays: Mapping[str, NDArray[Any]]
    batch_size: int = 64
    where: str = field(default="data", repr=False)
    axes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch size is {self.batch_size}; it must be at least 1")
        if not self.arrays or any(np.ndim(array) == 0 for array in self.arrays.values()):
            raise InputError(f"{self.where}: holds no arrays of rows; write arrays whose first axis counts the samples")
        lengths = {name: np.shape(array)[self._axis(name)] for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(
                f"{self.where}: its arrays have different lengths ({lengths}); the first axis must count the same rows"
            )

    @property
    def count(self) -> int:
        """Number of rows."""
        name = next((name for name in self.axes if name in self.arrays), next(iter(self.arrays)))
        return int(np.shape(self.arrays[name])[self.axes.get(name, 0)])

    def _axis(self, name: str) -> int:
        """The axis of an array that counts rows: the one that `axes` says, or, of labels, the one of as many elements."""
        shape = np.shape(self.arrays[name])
        axis = self.axes.get(name, 0)
        if not self.axes or (axis < len(shape) and shape[axis] == self.count):
            return axis
        return next((axis for axis, size in enumerate(shape) if size == self.count), 0)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self._cut(np.arange(self.count))

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Batches of the rows in random order."""
        return self._cut(random.permutation(self.count))

    def _cut(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield {name: array[(slice(None),) * self._axis(name) + (rows,)] for name, array in self.arrays.items()}


@dataclass(frozen=True)
class Arrays:
    """Rows of `.npz` files, cut into batches; files are read one at a time.

    Attributes:
        files: the files, in order.
        batch_size: rows per batch; the last one of each file may be smaller.
        axes: see `Rows`.
    """

    files: tuple[Path, ...]
    batch_size: int
    axes: Mapping[str, int] = field(default_factory=dict)
    _cache: dict[Path, Rows] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Batch]:
        for file in self.files:
            yield from self._read(file)

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Batches in random order: files, and rows within each."""
        for index in random.permutation(len(self.files)):
            yield from self._read(self.files[index]).shuffled(random)

    def __len__(self) -> int:
        return sum(len(self._read(file)) for file in self.files)

    def _read(self, file: Path) -> Rows:
        """Reads one file; a lone file stays in memory, since every epoch needs it again."""
        if file in self._cache:
            return self._cache[file]
        try:
            if not is_zipfile(file):
                raise InputError(f"{file}: not an .npz file, or cut off; write it with numpy.savez")
            _check_unpacked(file)
            with np.load(file, allow_pickle=False) as archive:
                rows = Rows({name: archive[name] for name in archive.files}, self.batch_size, str(file), self.axes)
        except InputError:
            raise
        except Exception as error:  # whatever damaged or encrypted bytes set off
            raise InputError(
                f"{file}: not an .npz file of plain arrays ({described(error)}); write it with numpy.savez"
            ) from error
        if len(self.files) == 1:
            self._cache[file] = rows
        return rows


def _check_unpacked(file: Path) -> None:
    """Raises InputError where a small file would fill the memory."""
    with ZipFile(file) as archive:
        unpacked, packed = sum(one.file_size for one in archive.infolist()), file.stat().st_size
    if unpacked > max(LARGEST_UNPACKED, LARGEST_RATIO * packed):
        raise InputError(
            f"{file}: {packed / 1e6:.3g} MB unpack to {unpacked / 1e6:.3g} MB; write it again, or into several files"
        )
