"""Checks the user's description of the model's inputs against the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.config_parts import Input, shown
from onnxqat.data.batch import Batch, Signature, check_batch
from onnxqat.errors import InputError
from onnxqat.runtime import Inference

#: Most elements of a sample batch.
LARGEST_SAMPLE = 2**28


def check_inputs(model: ir.Model, described: Sequence[Input]) -> None:
    """Makes a sample batch of what is described, and runs the model on it.

    Raises:
        InputError: an input has another name, type or shape, is described twice or not at all, or the model cannot run.
    """
    if not described:
        return
    signature = Signature.of(model)
    positions = [name for name in signature.inputs if name not in {one.name for one in described}]
    batch: Batch = {}
    for one in described:
        name = one.name or (positions.pop(0) if positions else None)
        if name not in signature.inputs or name in batch:
            given = "one more than it has" if name is None else f"{name!r}"
            raise InputError(
                f"configuration: inputs: describes {given}; the model takes {', '.join(map(repr, signature.inputs))}, each once"
            )
        batch[name] = _filled(one)
        wanted = signature.inputs[name][0]
        if batch[name].dtype != wanted:
            raise InputError(
                f"configuration: inputs: {name!r} is described as {one.dtype}, the model takes {wanted}; fix it"
            )
    try:
        Inference(model)(check_batch(batch, signature))
    except InputError as error:
        raise InputError(f"configuration: inputs: {str(error).removeprefix('batch 0: ')}") from None


def _filled(one: Input) -> NDArray[np.generic]:
    if math.prod(one.shape) > LARGEST_SAMPLE:
        raise InputError(
            f"configuration: inputs: a sample of shape {shown(one.shape)} is too large; describe a smaller one"
        )
    if one.filler == "random":
        random = np.random.default_rng(0)
        return random.normal(size=one.shape).astype(one.dtype)
    return np.full(one.shape, 1 if one.filler == "ones" else 0, one.dtype)
