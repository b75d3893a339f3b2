"""Converts models of old operator sets to a newer one, and checks on data that both give the same answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch, Signature
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.io import OLDEST_OPSET, opset
from onnxqat.graph.naming import label
from onnxqat.graph.opsets import CONVERTED_OPSET, upgraded
from onnxqat.runtime import Inference

log = logging.getLogger(__name__)

#: Sizes that free axes are given, in this order: some models take none but a large one.
SIZES = (2, 1, 32, 64, 224)
#: Numbers in a batch beyond which it is only tried while none has been compared.
LARGEST = 2**18
#: Largest difference, in units of the largest magnitude: the order of sums may change.
TOLERANCE = 1e-4


def modern(model: ir.Model) -> ir.Model:
    """The model itself, or, where its opset is older than all stages know, what `converted` makes of it."""
    return converted(model) if opset(model) < OLDEST_OPSET else model


def converted(model: ir.Model) -> ir.Model:
    """A copy in opset `CONVERTED_OPSET` that gives the same answers, on data made from the signature of the inputs.

    Raises:
        InputError: an operator has no newer form, or computes something else in it; the message names it.
    """
    result = upgraded(model, CONVERTED_OPSET)
    log.warning("model converted from opset %d to %d", model.opset_imports[""], CONVERTED_OPSET)
    try:
        old = Inference(model)
    except UnsupportedModelError as error:
        log.warning("model: cannot run in its own opset, so that its conversion is not compared (%s)", error)
        return result
    new, compared = Inference(result), 0
    for batch in _samples(model):
        if compared and sum(array.size for array in batch.values()) > LARGEST:
            break
        try:
            want = old(batch)
        except InputError:
            continue  # not a size, or not numbers, that the model takes
        if not _same(want, new(batch)):
            if _same(want, old(batch)):
                raise _changed(model, result, batch)
            log.warning("model: gives another answer each time, so its conversion is not compared")
            return result
        compared += 1
    if not compared:
        log.warning("model: runs on no data made for its inputs, so that its conversion is only compared on yours")
    return result


def check_converted(model: ir.Model, batch: Batch) -> None:
    """Checks the conversion of a model on the user's data; what `converted` has reported is not reported again.

    Raises:
        InputError: an operator computes something else in the newer opset; the message names it.
    """
    try:
        old = Inference(model)
    except UnsupportedModelError:
        return
    want, result = old(batch), upgraded(model, CONVERTED_OPSET)
    if not _same(want, Inference(result)(batch)) and _same(want, old(batch)):
        raise _changed(model, result, batch)


def _changed(model: ir.Model, result: ir.Model, batch: Batch) -> InputError:
    return InputError(
        f"model: {_first_that_differs(model, result, batch)} computes something else in opset {CONVERTED_OPSET}; "
        f"export the model with opset {CONVERTED_OPSET}"
    )


def _samples(model: ir.Model) -> Iterator[Batch]:
    """Batches for the inputs, for the first size of free axes with normal numbers and small integers; then for others.

    Flags, where there are any, are all true in one and all false in another, so that both branches of an `If` are taken.
    """
    signature = Signature.of(model)
    free = any(None in dims for _, dims in signature.inputs.values() if dims is not None)
    flags = (True, False) if any(dtype == np.bool_ for dtype, _ in signature.inputs.values()) else (True,)
    for size in SIZES if free else SIZES[:1]:
        for flag in flags:
            random = np.random.default_rng(size)
            yield {
                name: _drawn(random, dtype, tuple(dim or size for dim in dims or ()), flag=flag)
                for name, (dtype, dims) in signature.inputs.items()
            }


def _drawn(random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], *, flag: bool) -> NDArray[Any]:
    if dtype == np.bool_:
        return np.full(shape, flag)
    drawn = random.normal(size=shape) if dtype.kind == "f" else random.integers(0, 2, shape)
    return np.asarray(drawn, dtype)


def _same(want: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    return all(_close(value, got[name]) for name, value in want.items())


def _close(want: Any, got: Any) -> bool:
    if not isinstance(want, np.ndarray):  # a sequence
        return len(want) == len(got) and all(map(_close, want, got))
    if want.dtype != got.dtype or want.shape != got.shape:
        return False
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, got))
    finite = want[np.isfinite(want)]
    limit = TOLERANCE * float(np.abs(finite).max(initial=0))
    return bool(np.allclose(got, want, rtol=TOLERANCE, atol=limit, equal_nan=True))


def _first_that_differs(old: ir.Model, new: ir.Model, batch: Batch) -> str:
    """The first node of the old model whose result is another in the new one."""
    kept = {value.name for node in new.graph for value in node.outputs}
    for node in old.graph:
        names = [str(value.name) for value in node.outputs if value.name and value.name in kept]
        if names and not _same(_values(old, names, batch), _values(new, names, batch)):
            return label(node)
    return "an operator"


def _values(model: ir.Model, names: Sequence[str], batch: Batch) -> dict[str, Any]:
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    return Inference(copy)(batch)
