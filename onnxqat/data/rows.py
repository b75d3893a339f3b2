"""Rows of arrays, in memory or in files, cut into batches and shuffled in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.data.columns import Columns
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


class Part(Protocol):
    """Rows that are read together."""

    @property
    def rows(self) -> int | None:
        """Their number; None where only reading tells."""

    def load(self, columns: Sequence[str] | None) -> Mapping[str, NDArray[Any]]:
        """The arrays of these names, or all."""


@dataclass(frozen=True)
class NpzFile:
    """Arrays of an `.npz` file."""

    path: Path
    rows: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def load(self, columns: Sequence[str] | None) -> dict[str, NDArray[Any]]:
        """The arrays of these names that are there, or all."""
        try:
            if not is_zipfile(self.path):
                raise InputError(f"{self.path}: not an .npz file, or cut off; write it with numpy.savez")
            _check_unpacked(self.path)
            with np.load(self.path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except InputError:
            raise
        except Exception as error:  # whatever damaged or encrypted bytes set off
            raise InputError(
                f"{self.path}: not an .npz file of plain arrays ({described(error)}); write it with numpy.savez"
            ) from error


@dataclass(frozen=True)
class Arrays:
    """Rows of files or of parts of them, cut into batches; parts are read one at a time.

    Attributes:
        parts: the parts, in order.
        batch_size: rows per batch; the last one of each part may be smaller.
        axes: see `Rows`.
        columns: which arrays are read, and as which input or label.
        table: names of the columns of a table; empty for arrays, which have the names of inputs.
    """

    parts: tuple[Part, ...]
    batch_size: int
    axes: Mapping[str, int] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    table: tuple[str, ...] = ()
    _cache: dict[Part, Rows] = field(default_factory=dict, repr=False, compare=False)

    def fitted(self, signature: Signature) -> Arrays:
        """The rows for a model of this signature, which says what the columns of a table are."""
        return (
            replace(self, columns=self.columns.fitted(self.table, signature, str(self.parts[0])), _cache={})
            if self.table
            else self
        )

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts:
            yield from self._read(part)

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Batches in random order: parts, and rows within each."""
        for index in random.permutation(len(self.parts)):
            yield from self._read(self.parts[index]).shuffled(random)

    def __len__(self) -> int:
        return sum(
            len(self._read(part)) if part.rows is None else -(-part.rows // self.batch_size) for part in self.parts
        )

    def _read(self, part: Part) -> Rows:
        """Reads one part; a lone one stays in memory, since every epoch needs it again."""
        if part in self._cache:
            return self._cache[part]
        arrays = part.load(self.columns.wanted(self.table))
        rows = Rows(self.columns.batch(arrays, str(part)), self.batch_size, str(part), self.axes)
        if len(self.parts) == 1:
            self._cache[part] = rows
        return rows


def _check_unpacked(file: Path) -> None:
    """Raises InputError where a small file would fill the memory."""
    with ZipFile(file) as archive:
        unpacked, packed = sum(one.file_size for one in archive.infolist()), file.stat().st_size
    if unpacked > max(LARGEST_UNPACKED, LARGEST_RATIO * packed):
        raise InputError(
            f"{file}: {packed / 1e6:.3g} MB unpack to {unpacked / 1e6:.3g} MB; write it again, or into several files"
        )
