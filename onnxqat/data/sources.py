"""Turns the user's files, loaders, generators or functions into checked batches, which are dicts of arrays (see `batch`)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxqat.data.batch import Batch, Signature, check_alike, check_batch
from onnxqat.data.indexed import Indexed
from onnxqat.data.paths import Form, opened
from onnxqat.data.rows import Arrays, Rows
from onnxqat.errors import InputError
from onnxqat.process import foreign

log = logging.getLogger(__name__)

Source = Iterable[Any] | Callable[[], Iterable[Any]]
#: From an item of a loader to a batch.
Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class Batches:
    """A checked, repeatable stream of batches.

    Iterating gives the batches in their own order; `epoch(n)` gives them in the order of that epoch.

    Attributes:
        source: iterable of batches, function that returns one, `Rows`, `Arrays` or `Indexed`.
        signature: what each batch must hold.
        transform: turns one item of the source into a batch; None where items are batches.
        augment: turns a batch of an epoch of training into another, as by random flips; None: they stay as they are.
    """

    source: Source
    signature: Signature
    transform: Transform | None = None
    augment: Transform | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self._checked(self._items())

    @property
    def is_read_once(self) -> bool:
        """Whether the source is used up when it has been read: a generator."""
        return isinstance(self.source, Iterator)

    def check_epochs(self, epochs: int | None, what: str = "data") -> None:
        """Raises InputError if the source can be read only once (a generator), and more than one epoch is needed.

        How many are needed may not be known beforehand (None).
        """
        if epochs is not None and epochs > 1 and self.is_read_once:
            raise InputError(
                f"{what}: a {type(self.source).__name__} can be read once, not for {epochs} epochs; "
                "pass a function that makes one"
            )

    def epoch(self, number: int, seed: int = 0) -> Iterator[Batch]:
        """Batches of an epoch: arrays from files are shuffled (seeded by epoch), other sources keep their own order.

        A source with a method `set_epoch` (PyTorch's name) is told the epoch, since it draws its order itself.
        """
        if isinstance(self.source, Rows | Arrays | Indexed):
            return self._checked(self.source.shuffled(np.random.default_rng((seed, number))), self.augment)
        items = self._items()
        for owner in (items, getattr(items, "sampler", None), getattr(items, "batch_sampler", None)):
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:
                with foreign.guarded("data: set_epoch fails"):
                    set_epoch(number)
        return self._checked(items, self.augment)

    def __len__(self) -> int:
        """Number of batches; TypeError where the source does not tell."""
        source = self._made()
        try:
            return len(source)
        except TypeError:
            raise
        except Exception as error:
            raise InputError(f"data: its length cannot be read ({foreign.described(error)}); fix it") from error

    def _made(self) -> Any:
        """The source, or its result if it is a function."""
        with foreign.guarded("data: the function fails"):
            return self.source() if callable(self.source) else self.source

    def _items(self) -> Iterable[Any]:
        items = self._made()
        if not isinstance(items, Iterable):
            raise InputError(
                f"data: the function returned a {type(items).__name__}, not an iterable of batches; fix it"
            )
        if _is_endless(items):
            raise InputError("data: the tf.data.Dataset repeats without end; leave out repeat(), or add take(n)")
        return items

    def _checked(self, items: Iterable[Any], augment: Transform | None = None) -> Iterator[Batch]:
        number = -1
        first: Batch = {}
        for number, item in enumerate(foreign.each(items, "data")):
            with foreign.guarded(f"batch {number}: cannot be read"):
                batch = check_batch(self._transformed(item, number), self.signature, number)
            if augment is not None:
                with foreign.guarded(f"augment: fails on batch {number}", "fix the function"):
                    batch = check_batch(augment(batch), self.signature, number)
            first = first or batch
            check_alike(batch, first, number)
            yield batch
        if number < 0:
            hint = (
                ""
                if not isinstance(self.source, Iterator)
                else " (a generator can be read once: pass a function that makes one)"
            )
            raise InputError(f"data: no batches came{hint}; check the loader")

    def _transformed(self, item: Any, number: int) -> Any:
        if self.transform is None:
            return item
        with foreign.guarded(f"transform: fails on item {number} of the loader", "fix the function"):
            return self.transform(item)


def read(data: str | Path | Source, batch_size: int = 64, form: Form | None = None) -> Source:
    """Resolves what a user named as data.

    Args:
        data: a path (see `paths`), `package.module:function` that returns an iterable of batches, or such an iterable or function
            itself.
        batch_size: rows per batch, for files.
        form: how files become inputs; None: by their names.

    Raises:
        InputError: nothing of that kind is there.
    """
    form = form or Form()
    if not isinstance(data, (str, Path)):
        if not (callable(data) or isinstance(data, Iterable)):
            raise InputError(f"data: is a {type(data).__name__}, not an iterable of batches; wrap batches in a list")
        return data
    text = str(data)
    path = Path(text)
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; it must be at least 1")
    if ":" in text and not path.exists():
        form.check_used(text)
        return read(resolve(text))
    return opened(path, batch_size, form)


def batches(
    data: str | Path | Source | Batches,
    model: ir.Model,
    *,
    labels: Sequence[str] = ("label",),
    needs_labels: bool = False,
    batch_size: int = 64,
    transform: Transform | None = None,
    sample_axis: int | None = None,
) -> Batches:
    """Checked batches of whatever the user named, for this model (see `read`, `Batches` and `samples`)."""
    if transform is not None and not callable(transform):
        raise InputError(f"transform: is a {type(transform).__name__}; give a function from loader item to batch")
    if isinstance(data, Batches):
        return data if transform is None else replace(data, transform=transform)
    signature = Signature.of(model, labels, needs_labels=needs_labels, sample_axis=sample_axis)
    source = read(data, batch_size)
    if isinstance(source, Arrays | Indexed):
        source = source.fitted(signature)
    axes = signature.samples.cut(labels)
    if isinstance(source, Rows | Arrays) and axes and not source.axes:
        source = replace(source, axes=axes)
    if _is_one_batch(source, signature):
        raise InputError(
            "data: is a single batch, not an iterable of batches; wrap it in a list, "
            "or cut whole arrays into batches with onnxqat.data.Rows(arrays, batch_size)"
        )
    return Batches(source, signature, transform)


def _is_one_batch(source: Source, signature: Signature) -> bool:
    """Whether a source is a dict of arrays, an array of an input's rank, or such an array and its labels in a tuple."""
    if isinstance(source, Mapping):
        return True
    shape = next(iter(signature.inputs.values()))[1] if signature.inputs else None
    if shape is None:
        return False
    if isinstance(source, tuple):
        ranks = [getattr(part, "ndim", None) for part in source]
        return len(ranks) == 2 and ranks[0] == len(shape) and ranks[1] not in (None, len(shape))
    return getattr(source, "ndim", None) == len(shape)


def resolve(name: str) -> Any:
    """The object that `package.module:attribute` names, in the current folder first (see `foreign.imported`).

    Raises:
        InputError: module or attribute does not exist, or importing it fails.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{name}: names no function; write package.module:function")
    with foreign.guarded(f"{name}: its module cannot be imported"):
        module = _imported(name, module_name)
        if not hasattr(module, attribute):
            raise InputError(f"{name}: module {module_name!r} has no {attribute!r}; check the name")
        return getattr(module, attribute)


def _imported(name: str, module_name: str) -> ModuleType:
    try:
        return foreign.imported(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name.removeprefix(foreign.OWN_PREFIX)):
            raise InputError(f"{name}: its module needs {error.name!r}, which is not installed; install it") from error
        raise InputError(f"{name}: no module {module_name!r}; check the name and the current folder") from error


def call(name: str) -> Any:
    """Returns the result of the function that `package.module:function` names; it is called without arguments.

    Raises:
        InputError: there is no such function, or it fails.
    """
    function = resolve(name)
    if not callable(function):
        return function
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(f"{name}: cannot be called without arguments ({error}); name a function that can") from error
    except ValueError:  # one written in C, which does not tell
        pass
    with foreign.guarded(f"{name}: fails", "fix the function"):
        return function()


def _is_endless(items: Iterable[Any]) -> bool:
    """Whether the source is a tf.data.Dataset of infinite cardinality; -1 is tf.data.INFINITE_CARDINALITY."""
    cardinality = getattr(items, "cardinality", None)
    with foreign.guarded("data: its cardinality fails"):
        return callable(cardinality) and int(cardinality()) == -1
