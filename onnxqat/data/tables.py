"""Tables in CSV and Parquet files, read by pyarrow: a CSV file at once, a Parquet file one row group at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.errors import InputError, MissingExtraError
from onnxqat.process.foreign import guarded

ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class CsvFile:
    """Rows of a CSV file, whose first line names the columns."""

    path: Path
    rows: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def load(self, columns: Sequence[str] | None) -> dict[str, NDArray[Any]]:
        """The columns as arrays."""
        from pyarrow import csv

        with guarded(f"{self.path}: is no CSV file with a line of names", "write it again"):
            table = csv.read_csv(self.path)
        return _arrays(table, columns, str(self.path))


@dataclass(frozen=True)
class RowGroup:
    """Rows of a Parquet file that are stored together."""

    path: Path
    number: int
    rows: int | None

    def __str__(self) -> str:
        return f"{self.path}, row group {self.number}"

    def load(self, columns: Sequence[str] | None) -> dict[str, NDArray[Any]]:
        """The columns as arrays."""
        from pyarrow.parquet import ParquetFile

        with guarded(f"{self}: cannot be read", "write it again"), ParquetFile(self.path) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            table = file.read_row_group(self.number, columns=known)
        return _arrays(table, columns, str(self))


def parts(path: Path) -> tuple[tuple[CsvFile | RowGroup, ...], tuple[str, ...]]:
    """The parts of a table, and the names of its columns.

    Raises:
        InputError: the file is no table.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        from pyarrow import csv
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(f"{path}: pyarrow is not installed; run `pip install 'onnxqat[tables]'`") from error
    if path.suffix == ".csv":
        with guarded(f"{path}: is no CSV file with a line of names", "write it again"), csv.open_csv(path) as reader:
            return (CsvFile(path),), tuple(reader.schema.names)
    with guarded(f"{path}: is no Parquet file", "write it again"), ParquetFile(path) as file:
        counts = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        names = tuple(file.schema_arrow.names)
    found = tuple(RowGroup(path, number, rows) for number, rows in enumerate(counts) if rows)
    if not found:
        raise InputError(f"{path}: holds no rows; give a file that does")
    return found, names


def _arrays(table: Any, columns: Sequence[str] | None, where: str) -> dict[str, NDArray[Any]]:
    wanted = table.column_names if columns is None else [name for name in columns if name in table.column_names]
    return {name: _array(table.column(name), f"{where}: column {name!r}") for name in wanted}


def _array(column: Any, what: str) -> NDArray[Any]:
    """A column of numbers, [rows], or of lists of the same length, [rows, length].

    Raises:
        InputError: it holds text or the like, lists of different lengths, or gaps.
    """
    import pyarrow as pa

    if column.null_count:
        raise InputError(f"{what}: lacks {column.null_count} values; fill them in, or remove these rows")
    flat, rows = column.combine_chunks(), len(column)
    if isinstance(flat, pa.ChunkedArray):  # of no chunks
        flat = pa.array([], column.type)
    shape: tuple[int, ...] = (rows,)
    while pa.types.is_nested(flat.type) and hasattr(flat, "flatten") and not pa.types.is_struct(flat.type):
        count, flat = len(flat), flat.flatten()
        if count and len(flat) % count:
            raise InputError(f"{what}: holds lists of different lengths; fill them up to one length")
        shape = (*shape, len(flat) // max(count, 1))
    numbers = flat.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "biuf":
        raise InputError(f"{what}: holds {flat.type}, not numbers; encode it, or choose other columns by --map")
    return np.asarray(numbers).reshape(shape)
