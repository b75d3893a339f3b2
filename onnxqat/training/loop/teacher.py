"""The model that the loss `distill` learns from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.qdq import Quantizer, quantizers
from onnxqat.graph.without import ADAPTED, without_quantizers
from onnxqat.runtime.conversion import modern
from onnxqat.runtime.parted import Parted
from onnxqat.runtime.splitting import sample_axes, splitting_of
from onnxqat.training.execution import Execution

log = logging.getLogger(__name__)

#: Gives the outputs that are learned from, for the inputs of a batch.
Teacher = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def teacher_of(
    qdq: ir.Model,
    distilled: Sequence[str],
    given: io.ModelLike | None,
    execution: Execution,
    sample_axis: int | None = None,
) -> Teacher | None:
    """Returns the teacher of a model: the one that is given, or else the model without its quantizers.

    Args:
        qdq: the model that learns.
        distilled: outputs that it learns; there is no teacher where it learns none.
        given: model that the user names as the teacher.
        execution: how the teacher runs.
        sample_axis: axis of the first input that counts samples; None: it follows from the model.

    Raises:
        InputError: the teacher lacks an output, is missing where one is needed, or is given to a loss that does not distill.
    """
    if not distilled:
        if given is not None:
            raise InputError("teacher: given, but the loss does not distill; add 'distill' to the loss")
        return None
    model = modern(io.load(given, oldest_opset=7)) if given is not None else _own_teacher(qdq)
    present = {value.name for value in model.graph.outputs}
    missing = [name for name in distilled if name not in present]
    if missing:
        raise InputError(f"teacher: has no output {missing[0]!r}; give a model with the same outputs")
    splitting = splitting_of(model, sample_axes(model, sample_axis)) if execution.cuts else None
    return Parted(model, distilled, splitting, execution.threads, called="teacher", device=execution.device)


def _own_teacher(qdq: ir.Model) -> ir.Model:
    """The model without its quantizers; a model whose weights were stored as integers makes a worse one than its float model.

    Raises:
        InputError: its weights were changed for its quantizers' sake.
    """
    if ADAPTED in qdq.metadata_props:
        raise InputError(
            f"distill: {qdq.metadata_props[ADAPTED]} has changed weights or biases, so the model without its quantizers is not "
            "the float model; give the float model as teacher"
        )
    weights = [one for one in quantizers(qdq) if one.is_weight and one.quantize is not None]
    if weights and all(_lies_on_grid(one) for one in weights):
        log.warning(
            "distill: the weights have been rounded to integers, and the model without its quantizers, which teaches by default, "
            "keeps that error; give the float model as teacher"
        )
    return without_quantizers(qdq)


def _lies_on_grid(weight: Quantizer) -> bool:
    array = constant(weight.source)
    return array is not None and np.array_equal(weight.dequantized, array)
