"""Columns of tables and arrays of files under the names of the model's inputs and labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.errors import InputError

Names = Mapping[str, tuple[str, ...]]
LABEL = "label"


@dataclass(frozen=True)
class Columns:
    """Choice of what is read, and for which input.

    Attributes:
        names: columns by the input or label that they become, side by side where several; empty: all, as they are called.
        kinds: dtype and rank that inputs get; empty: arrays stay as they are.
    """

    names: Names = field(default_factory=dict)
    kinds: Mapping[str, tuple[np.dtype[Any], int | None]] = field(default_factory=dict)

    def fitted(self, columns: Sequence[str], signature: Signature, where: str) -> Columns:
        """The choice for a table: of an only input, which no column is named as, all columns but labels are the values.

        Raises:
            InputError: a column that is named is not there.
        """
        self._check(columns, where)
        names, inputs = dict(self.names), signature.inputs
        used = {column for of_one in names.values() for column in of_one}
        if len(inputs) == 1 and not inputs.keys() & {*names, *columns}:
            rest = tuple(column for column in columns if column not in {*used, *signature.labels})
            names |= dict.fromkeys(inputs, rest)
        elif names:
            names |= {name: (name,) for name in inputs if name not in names}
        kinds = {name: (dtype, None if shape is None else len(shape)) for name, (dtype, shape) in inputs.items()}
        return replace(self, names=names, kinds=kinds)

    def wanted(self, columns: Iterable[str]) -> list[str] | None:
        """The columns that must be read; None: all."""
        if not self.names:
            return None
        used = [column for of_one in self.names.values() for column in of_one]
        return [*dict.fromkeys(used), *(LABEL,) * (LABEL not in {*used, *self.names} and LABEL in columns)]

    def batch(self, arrays: Mapping[str, NDArray[Any]], where: str) -> Batch:
        """The arrays under the names of inputs and labels.

        Raises:
            InputError: one that is named is not there.
        """
        if not self.names:
            return {name: self._kind(name, array) for name, array in arrays.items()}
        self._check(arrays, where)
        batch = {name: self._joined(name, [arrays[column] for column in of_one]) for name, of_one in self.names.items()}
        if LABEL in arrays and LABEL not in batch:
            batch[LABEL] = arrays[LABEL]
        return batch

    def _check(self, held: Collection[str], where: str) -> None:
        missing = [column for of_one in self.names.values() for column in of_one if column not in held]
        if missing:
            listed = ", ".join(map(repr, held)) or "nothing"
            raise InputError(
                f"{where}: has no {missing[0]!r}; it holds {listed}; name one of these by --map INPUT=NAME"
            )

    def _joined(self, name: str, arrays: list[NDArray[Any]]) -> NDArray[Any]:
        return self._kind(name, arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1))

    def _kind(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An array in the type of its input, and as a column where that has two axes."""
        if name not in self.kinds:
            return array
        dtype, rank = self.kinds[name]
        array = array[:, None] if rank == 2 and array.ndim == 1 else array
        fits = array.dtype.kind in "biuf" and not (dtype.kind in "iu" and array.dtype.kind == "f")
        return array.astype(dtype) if fits else array


def parsed(texts: Iterable[str]) -> Names:
    """`INPUT=NAME` or `INPUT=NAME,NAME` as a choice.

    Raises:
        InputError: a text is something else.
    """
    names: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, columns = text.partition("=")
        found = tuple(column.strip() for column in columns.split(","))
        if not name or not all(found) or name in names:
            raise InputError(f"--map {text}: is not INPUT=NAME, once for each input; write --map image=pixels")
        names[name] = found
    return names
