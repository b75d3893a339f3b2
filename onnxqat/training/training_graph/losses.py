"""The loss at the end of the training graph as ONNX nodes: named losses, or the user's function."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.data.labels import Decisions, Labelling
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph.io import opset
from onnxqat.graph.ops import Ops
from onnxqat.training.training_graph.logits import CLASS_AXIS
from onnxqat.training.training_graph.loss_functions import call_function
from onnxqat.training.training_graph.loss_inputs import LABEL, TEACHER
from onnxqat.training.training_graph.named_losses import Labels, Site, labels_of, weighted_sum, weights_of

#: A loss's name, several names to sum, weights by name, or an ONNX function from (outputs, labels) to a scalar.
Loss: TypeAlias = "str | Sequence[str] | Mapping[str, float] | onnx.FunctionProto | Any"

#: Name of the loss in the training graph, which no value of a user's model has.
LOSS = "onnxqat.loss"


@dataclass(frozen=True)
class AttachedLoss:
    """Needs of a model's loss.

    Attributes:
        labels: numpy dtype of each label, by name.
        distilled: the outputs that are compared to a teacher's.
        judged: kind of the first output's labels; None without labels, or where the user's function takes them.
        decisions: how labels belong to the first output.
    """

    labels: dict[str, np.dtype[Any]]
    distilled: tuple[str, ...]
    judged: Labels | None
    decisions: Decisions

    @property
    def counts_accuracy(self) -> bool:
        """Whether labels say what is to be decided, so that hits are counted, and some labels may not count."""
        return self.judged in ("classes", "sides")


def attach_loss(model: ir.Model, loss: Loss, labelling: Labelling | None = None) -> AttachedLoss:
    """Adds the loss to a forward model, in place: the value `LOSS`, and graph inputs for labels and teacher outputs.

    Raises:
        InputError: an unknown loss, or two that need labels of different types.
    """
    op = Ops(opset(model))
    before = {value.name for value in model.graph.inputs}
    labelling = labelling or Labelling()
    samples = Samples.of(model, labelling.sample_axis)
    sites = [_site(model.graph, output, labelling, samples) for output in model.graph.outputs]
    if isinstance(loss, str | Sequence | Mapping):
        weights = weights_of(loss)
        judged = labels_of(weights)
        if labelling.ignore_label is not None and judged == "values":
            raise InputError(
                "ignore_label: given, but the labels of the loss are values, all of which count; leave it out"
            )
        total = weighted_sum(op, sites, weights)
    else:
        judged, total = None, call_function(op, model, loss)
    _append(model.graph, op, total)
    added = {str(value.name): value for value in model.graph.inputs if value.name not in {*before, CLASS_AXIS}}
    distilled = tuple(name.removeprefix(TEACHER) for name in added if name.startswith(TEACHER))
    labels = {
        name.removeprefix(LABEL): np.dtype((value.dtype or ir.DataType.FLOAT).numpy())
        for name, value in added.items()
        if name.startswith(LABEL)
    }
    _check_apart(labels, before)
    return AttachedLoss(labels, distilled, judged, sites[0].decisions)


def _append(graph: ir.Graph, op: Ops, total: ir.Value) -> None:
    """Appends the written nodes, and the scalar `LOSS` made of their result."""
    scalar = op.Reshape(total, op.Constant(value=ir.tensor(np.zeros(0, np.int64))))
    scalar.name, scalar.type, scalar.shape = LOSS, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.extend(op.named(LOSS))


def _check_apart(labels: Iterable[str], inputs: Container[str | None]) -> None:
    for name in labels:
        if name in inputs:
            raise InputError(f"loss: its labels are called {name!r}, as an input of the model is; rename the input")


def _site(graph: ir.Graph, output: ir.Value, labelling: Labelling, samples: Samples) -> Site:
    axis = samples.outputs.get(str(output.name), 0) or 0
    said = labelling if output is graph.outputs[0] else Labelling()
    return Site(graph, output, Decisions.of(output, said, axis), axis)
