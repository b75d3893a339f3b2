"""One batch: a dict from input name to array, labels under their names, or a tuple in the model's input order and the labels.

PyTorch tensors and TensorFlow tensors are read through NumPy's array protocol, so neither framework is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph.empty import check_not_empty, fatal_when_empty

Batch = dict[str, NDArray[Any]]

#: Key of a model's metadata: names of the inputs that `insert` made constants, as a JSON list.
FIXED_INPUTS = "onnxqat.fixed_inputs"


@dataclass(frozen=True)
class Signature:
    """Requirements on a batch.

    Attributes:
        inputs: dtype and shape (None where free) of each model input, in the model's order.
        labels: names of the label arrays, in the order in which they end a tuple.
        needs_labels: whether a batch without labels is refused.
        samples: which axes count samples.
        fatal_when_empty: inputs that crash ONNX Runtime if they are empty, each with the operator.
        without_labels: advice in the message about missing labels.
        fixed: names of former inputs that are constants of the model now; batches may still hold them.
    """

    inputs: dict[str, tuple[np.dtype[Any], tuple[int | None, ...] | None]]
    labels: tuple[str, ...] = ("label",)
    needs_labels: bool = False
    samples: Samples = field(default_factory=Samples)
    fatal_when_empty: Mapping[str, str] = field(default_factory=dict)
    without_labels: str = "add them to the data"
    fixed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: ir.Model,
        labels: Sequence[str] = ("label",),
        *,
        needs_labels: bool = False,
        sample_axis: int | None = None,
    ) -> Signature:
        """Returns the signature of a model's inputs, without initializers that are listed among them."""
        inputs = {}
        for value in model.graph.inputs:
            if value.is_initializer() or value.name is None:
                continue
            dims = None
            if value.shape is not None:
                dims = tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape)
            dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
            inputs[value.name] = (np.dtype(dtype.numpy()), dims)
        samples = Samples.of(model, sample_axis)
        fixed = tuple(json.loads(model.metadata_props.get(FIXED_INPUTS, "[]")))
        return cls(inputs, tuple(labels), needs_labels, samples, fatal_when_empty(model.graph), fixed=fixed)


def check_batch(item: Any, signature: Signature, number: int = 0) -> Batch:
    """Returns an item of a loader as a batch that fits the signature.

    Raises:
        InputError: a name is missing or unknown, a type or shape does not fit, an array is empty or not finite.
    """
    named = {name: value for name, value in _named(item, signature, number).items() if name not in signature.fixed}
    allowed = [*signature.inputs, *signature.labels]
    unknown = [name for name in named if name not in allowed]
    if unknown:
        raise InputError(
            f"batch {number}: holds {_listed(unknown)}, the model takes {_listed(allowed)}; rename it or leave it out"
        )
    required = allowed if signature.needs_labels else list(signature.inputs)
    missing = [name for name in required if name not in named]
    if missing:
        remedy = "" if set(missing) & set(signature.inputs) else f"; {signature.without_labels}"
        raise InputError(f"batch {number}: lacks {_listed(missing)}; it holds {_listed(named)}{remedy}")
    batch: Batch = {}
    for name, value in named.items():
        array = _as_array(value, name, number)
        if name in signature.inputs:
            wanted = signature.inputs[name][0]
            if not hasattr(value, "dtype") and array.dtype.kind == wanted.kind:
                array = array.astype(wanted)  # Python's own numbers have no width that the user chose
            array = _fitting(array, name, signature.inputs[name], number)
        _check_content(array, name, number)
        batch[name] = array
    _check_samples(batch, signature, number)
    return batch


def _named(item: Any, signature: Signature, number: int) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return dict(item)
    if item is None:
        raise InputError(
            f"batch {number}: is None; let the loader, or the function that changes its batches, return one"
        )
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
    if shape is not None and not _fits(array.shape, shape):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise InputError(
            f"batch {number}: {name!r} has shape {list(array.shape)}, the model takes [{wanted}]; {_remedy(array.shape, shape)}"
        )
    return array


Shape = tuple[int, ...]


def _fits(shape: Shape, wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w is None or w == s for w, s in zip(wanted, shape, strict=True))


def _remedy(shape: Shape, wanted: tuple[int | None, ...]) -> str:
    """Returns advice for an array of the wrong shape; the most common mistakes are looked for first."""
    if _fits((1, *shape), (None, *wanted[1:])):
        return "if these are single samples, let the loader batch them"
    if shape[1:] and _fits(shape[1:], wanted[1:]) and wanted[0] is not None:
        return _rows_remedy(shape[0], wanted[0])
    rest = (None, *wanted[1:])
    for axes in _moves_of_the_channels(len(shape)):
        if _fits(tuple(shape[axis] for axis in axes), rest):
            last = "last" if axes[1] == len(shape) - 1 else "first"
            return f"the data has its channels {last}: transpose it, x.transpose{axes}"
    for axis in range(1, len(shape) + 1):
        if _fits((*shape[:axis], 1, *shape[axis:]), rest):
            return f"an axis of length 1 is missing: add it, numpy.expand_dims(x, {axis})"
    return "reshape it"


def _rows_remedy(rows: int, wanted: int) -> str:
    if rows < wanted:
        return f"leave out what does not fill a batch of {wanted}, or export the model with a dynamic batch"
    return f"cut the data so: --batch-size {wanted}, or a loader of batches of {wanted}; or export with a dynamic batch"


def _moves_of_the_channels(rank: int) -> list[tuple[int, ...]]:
    """Returns orders of axes that move the channels: from the end to behind the batch, and the other way round."""
    if rank < 3:
        return []
    return [(0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)]


def check_alike(batch: Batch, first: Batch, number: int) -> None:
    """Refuses arrays or ranks other than those of the first batch, which the signature alone would allow."""
    if batch.keys() != first.keys():
        raise InputError(
            f"batch {number}: holds {_listed(batch)}, batch 0 held {_listed(first)}; give the same arrays in every batch"
        )
    for name, array in batch.items():
        if array.ndim != first[name].ndim or array.dtype != first[name].dtype:
            raise InputError(
                f"batch {number}: {name!r} is {array.dtype} of shape {list(array.shape)}, in batch 0 it was "
                f"{first[name].dtype} of shape {list(first[name].shape)}; give the same kind of array in every batch"
            )


def _check_samples(batch: Batch, signature: Signature, number: int) -> None:
    """Refuses a batch of no samples; an input may be empty along another axis, as a cache is at the first step."""
    empty = [name for name in batch if batch[name].size == 0]
    labelled = any(name in signature.labels for name in empty)
    if empty and (labelled or signature.samples.without(batch, list(signature.inputs))):
        shape = list(batch[empty[0]].shape)
        raise InputError(f"batch {number}: {empty[0]!r} is empty (shape {shape}); drop empty batches")
    check_not_empty(signature.fatal_when_empty, batch)


def _check_content(array: NDArray[Any], name: str, number: int) -> None:
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise InputError(f"batch {number}: {name!r} holds NaN or infinity; clean the data")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "nothing"
