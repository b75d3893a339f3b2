"""Batches: whatever the user has, files, loaders, generators or functions, becomes checked dicts of arrays.

A batch is a dict from input name to array, labels under their names, or a tuple in the model's input order followed by the
labels. PyTorch tensors and TensorFlow tensors are read through NumPy's array protocol, so neither framework is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile
from zlib import error as ZlibError  # noqa: N812

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError

Batch = dict[str, NDArray[Any]]
Source = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Signature:
    """What a batch must hold.

    Attributes:
        inputs: dtype and shape (None where free) of each model input, in the model's order.
        labels: names of the label arrays, in the order of a tuple batch's tail.
        needs_labels: whether a batch without them is refused.
    """

    inputs: dict[str, tuple[np.dtype[Any], tuple[int | None, ...] | None]]
    labels: tuple[str, ...] = ("label",)
    needs_labels: bool = False

    @classmethod
    def of(cls, model: ir.Model, labels: Sequence[str] = ("label",), *, needs_labels: bool = False) -> Signature:
        """The signature of a model's inputs; initializers that are listed among the inputs do not count."""
        inputs = {}
        for value in model.graph.inputs:
            if value.is_initializer() or value.name is None:
                continue
            dims = None
            if value.shape is not None:
                dims = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
            dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
            inputs[value.name] = (np.dtype(dtype.numpy()), dims)
        return cls(inputs, tuple(labels), needs_labels)


@dataclass(frozen=True)
class Batches:
    """A checked, repeatable stream of batches.

    Iterating gives the batches in their own order; `epoch(n)` gives them in the order of that epoch.

    Attributes:
        source: iterable of batches, function that returns one, or `Arrays`.
        signature: what each batch must hold.
        transform: turns one item of the source into a batch; None where items are batches.
    """

    source: Source
    signature: Signature
    transform: Callable[[Any], Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self._checked(self._items())

    def epoch(self, number: int, seed: int = 0) -> Iterator[Batch]:
        """Batches of an epoch: arrays from files are shuffled anew (seeded), other sources keep their own order.

        A source that draws its order itself is told the epoch where it has `set_epoch`, PyTorch's name for it.
        """
        if isinstance(self.source, Arrays):
            return self._checked(self.source.shuffled(np.random.default_rng((seed, number))))
        items = self.source() if callable(self.source) else self.source
        for owner in (items, getattr(items, "sampler", None)):
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(number)
        return self._checked(items)

    def __len__(self) -> int:
        """Number of batches; TypeError where the source does not tell."""
        source = self.source() if callable(self.source) else self.source
        return len(source)  # type: ignore[arg-type]

    def _items(self) -> Iterable[Any]:
        items = self.source() if callable(self.source) else self.source
        if not isinstance(items, Iterable):
            raise InputError(
                f"data: the function returned a {type(items).__name__}, not an iterable of batches; mend it"
            )
        return items

    def _checked(self, items: Iterable[Any]) -> Iterator[Batch]:
        number = -1
        for number, item in enumerate(items):
            yield check_batch(item if self.transform is None else self.transform(item), self.signature, number)
        if number < 0:
            hint = (
                ""
                if not isinstance(self.source, Iterator)
                else " (a generator can be read once: pass a function that makes one)"
            )
            raise InputError(f"data: no batches came{hint}; check the loader")


@dataclass(frozen=True)
class Arrays:
    """Rows of `.npz` files, cut into batches; files are read one at a time.

    Attributes:
        files: the files, in order.
        batch_size: rows per batch; the last one of each file may be smaller.
    """

    files: tuple[Path, ...]
    batch_size: int
    _cache: dict[Path, Batch] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[Batch]:
        for file in self.files:
            arrays = self._read(file)
            yield from self._cut(arrays, np.arange(_rows(arrays, file)))

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Batches in random order: files, and rows within each."""
        for index in random.permutation(len(self.files)):
            file = self.files[index]
            arrays = self._read(file)
            yield from self._cut(arrays, random.permutation(_rows(arrays, file)))

    def __len__(self) -> int:
        return sum(-(-_rows(self._read(f), f) // self.batch_size) for f in self.files)

    def _cut(self, arrays: Batch, order: NDArray[np.int64]) -> Iterator[Batch]:
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield {name: array[rows] for name, array in arrays.items()}

    def _read(self, file: Path) -> Batch:
        """Reads one file; a lone file stays in memory, since every epoch needs it again."""
        if file in self._cache:
            return self._cache[file]
        try:
            if not is_zipfile(file):
                raise InputError(f"{file}: not an .npz file, or cut off; write it with numpy.savez")
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, BadZipFile, EOFError, ZlibError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{file}: not an .npz file of plain arrays ({error}); write it with numpy.savez"
            ) from error
        if len(self.files) == 1:
            self._cache[file] = arrays
        return arrays


def read(data: str | Path | Source, batch_size: int = 64) -> Source:
    """Resolves what a user named as data.

    Args:
        data: an `.npz` file, a folder of them, `package.module:function` that returns an iterable of batches, or such an
            iterable or function itself.
        batch_size: rows per batch, for files.

    Raises:
        InputError: nothing of that kind is there.
    """
    if not isinstance(data, (str, Path)):
        if not (callable(data) or isinstance(data, Iterable)):
            raise InputError(f"data: is a {type(data).__name__}, not an iterable of batches; wrap batches in a list")
        return data
    text = str(data)
    path = Path(text)
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; it must be at least 1")
    if ":" in text and not path.exists():
        return read(resolve(text))
    if path.is_dir():
        files = tuple(sorted(path.glob("*.npz")))
        if not files:
            raise InputError(f"{path}: the folder holds no .npz file; write batches with numpy.savez")
        return Arrays(files, batch_size)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an .npz file, a folder of them, or package.module:function")
    return Arrays((path,), batch_size)


def batches(
    data: str | Path | Source | Batches,
    model: ir.Model,
    *,
    labels: Sequence[str] = ("label",),
    needs_labels: bool = False,
    batch_size: int = 64,
    transform: Callable[[Any], Any] | None = None,
) -> Batches:
    """Checked batches of whatever the user named, for this model (see `read` and `Batches`)."""
    if isinstance(data, Batches):
        return data
    signature = Signature.of(model, labels, needs_labels=needs_labels)
    source = read(data, batch_size)
    if isinstance(source, Mapping):
        raise InputError("data: is a single batch, not an iterable of batches; wrap it in a list")
    return Batches(source, signature, transform)


def resolve(name: str) -> Any:
    """The object that `package.module:attribute` names; the current folder counts as an import path.

    Raises:
        InputError: module or attribute does not exist.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{name}: names no function; write package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name):
            raise InputError(f"{name}: its module needs {error.name!r}, which is not installed; install it") from error
        raise InputError(f"{name}: no module {module_name!r}; check the name and the current folder") from error
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{name}: its module cannot be imported ({error}); mend it") from error
    if not hasattr(module, attribute):
        raise InputError(f"{name}: module {module_name!r} has no {attribute!r}; check the name")
    return getattr(module, attribute)


def check_batch(item: Any, signature: Signature, number: int = 0) -> Batch:
    """One item of a loader as a batch that fits the signature.

    Raises:
        InputError: a name is missing or unknown, a type or shape does not fit, an array is empty or not finite.
    """
    named = _named(item, signature, number)
    allowed = [*signature.inputs, *signature.labels]
    unknown = [name for name in named if name not in allowed]
    if unknown:
        raise InputError(f"batch {number}: has no use for {_listed(unknown)}; the model takes {_listed(allowed)}")
    required = allowed if signature.needs_labels else list(signature.inputs)
    missing = [name for name in required if name not in named]
    if missing:
        raise InputError(f"batch {number}: lacks {_listed(missing)}; it holds {_listed(named)}")
    batch: Batch = {}
    for name, value in named.items():
        array = _as_array(value, name, number)
        if name in signature.inputs:
            array = _fitting(array, name, signature.inputs[name], number)
        _check_content(array, name, number)
        batch[name] = array
    return batch


def _named(item: Any, signature: Signature, number: int) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    names = [*signature.inputs, *signature.labels]
    parts = list(item) if isinstance(item, (tuple, list)) else [item]
    if parts and isinstance(parts[0], Mapping):
        return {**parts[0], **dict(zip(signature.labels, parts[1:], strict=False))}
    if len(parts) < len(signature.inputs) or len(parts) > len(names):
        raise InputError(
            f"batch {number}: is a tuple of {len(parts)}; the model takes {_listed(signature.inputs)} "
            f"followed by the labels {_listed(signature.labels)}"
        )
    return dict(zip(names, parts, strict=False))


def _as_array(value: Any, name: str, number: int) -> NDArray[Any]:
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError) as error:
        raise InputError(f"batch {number}: {name!r} cannot be read as an array ({error}); convert it") from error
    if array.dtype == object:
        raise InputError(f"batch {number}: {name!r} is not an array of numbers but {type(value).__name__}; convert it")
    return array


def _fitting(
    array: NDArray[Any], name: str, expected: tuple[np.dtype[Any], tuple[int | None, ...] | None], number: int
) -> NDArray[Any]:
    dtype, shape = expected
    if array.dtype != dtype:
        if not np.can_cast(array.dtype, dtype, "safe"):
            raise InputError(f"batch {number}: {name!r} has type {array.dtype}, the model takes {dtype}; cast it")
        array = array.astype(dtype)
    if shape is not None:
        fits = array.ndim == len(shape) and all(s is None or s == d for s, d in zip(shape, array.shape, strict=True))
        if not fits:
            wanted = ", ".join("any" if s is None else str(s) for s in shape)
            raise InputError(
                f"batch {number}: {name!r} has shape {list(array.shape)}, the model takes [{wanted}]; reshape it"
            )
    return array


def _check_content(array: NDArray[Any], name: str, number: int) -> None:
    if array.size == 0:
        raise InputError(f"batch {number}: {name!r} is empty (shape {list(array.shape)}); drop empty batches")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"batch {number}: {name!r} holds NaN or infinity; clean the data")


def _rows(arrays: Batch, file: Path) -> int:
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise InputError(f"{file}: holds no arrays of rows; write arrays whose first axis counts the samples")
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(
            f"{file}: its arrays have different lengths ({lengths}); the first axis must count the same rows"
        )
    return next(iter(lengths.values()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "nothing"
