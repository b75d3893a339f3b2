"""Parts of a batch for several threads: how its arrays are cut, and how much the loss of each part counts.

A batch is cut only where the graph shows that its samples know nothing of each other and that the loss is a mean or a sum over
them; the gradient of the batch is then the weighted sum of those of its parts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.data.samples import Samples
from onnxqat.graph.io import opset
from onnxqat.graph.ops import Ops
from onnxqat.graph.samplewise.fewest import fewest
from onnxqat.graph.samplewise.follow import follow
from onnxqat.graph.samplewise.kinds import Coupled, Kind, Mean, Rows, Same, Total
from onnxqat.graph.types import infer
from onnxqat.runtime import Inference

log = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Part:
    """Part of a batch.

    Attributes:
        arrays: what the graph is fed.
        share: weight of its loss and gradients in those of the batch.
    """

    arrays: Arrays
    share: float


@dataclass(frozen=True)
class Splitting:
    """Cuts of batches for one graph.

    Attributes:
        inputs: axis of the samples of each graph input that is made of them.
        outputs: axis of each output; None: it is the same for all parts.
        ranks: number of axes that graph inputs are taken to have whose shape the graph does not say.
        summed: whether the loss is a sum over samples, not a mean.
        weights: computes by how much a part weighs in the mean; None: by its number of samples.
        least: number of samples that a part has at least.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int | None]
    ranks: Mapping[str, int] = field(default_factory=dict)
    summed: bool = False
    weights: Inference | None = None
    least: int = 1

    def parts(self, batch: Arrays, most: int) -> list[Part]:
        """Parts of nearly equal size, at most `most`, in order; the batch itself if it is small or its arrays do not go together.

        Where no label of a part counts, its share is 0, and its loss not a number.
        """
        whole = [Part(batch, 1.0)]
        rows = self._rows(batch)
        count = min(most, rows // self.least)
        if count < 2:
            return whole
        bounds = [rows * number // count for number in range(count + 1)]
        cut = [self._cut(batch, *pair) for pair in pairwise(bounds)]
        weights = np.array([self._weight(part, self._rows(part)) for part in cut])
        total = 1.0 if self.summed else weights.sum()
        return (
            [Part(part, float(weight / total)) for part, weight in zip(cut, weights, strict=True)] if total else whole
        )

    def joined(self, name: str, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """An output of the batch from those of its parts."""
        axis = self.outputs[name]
        return arrays[0] if axis is None else np.concatenate(arrays, axis=axis)

    def _rows(self, batch: Arrays) -> int:
        """Number of samples; 0 where arrays do not have the same."""
        known = [(name, batch[name], axis) for name, axis in self.inputs.items() if name in batch]
        found = {
            array.shape[axis] if axis < array.ndim == self.ranks.get(name, array.ndim) else 0
            for name, array, axis in known
        }
        return found.pop() if len(found) == 1 else 0

    def _cut(self, batch: Arrays, start: int, stop: int) -> Arrays:
        return {name: cut(array, self.inputs.get(name), start, stop) for name, array in batch.items()}

    def _weight(self, part: Arrays, rows: int) -> float:
        if self.summed:
            return 1.0
        return rows if self.weights is None else float(next(iter(self.weights(part).values())).sum())


def cut(array: NDArray[Any], axis: int | None, start: int, stop: int) -> NDArray[Any]:
    """The samples from `start` to `stop` of an array that has them along an axis; all of it where it has none."""
    return array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]


def sample_axes(model: ir.Model, given: int | None = None) -> dict[str, int]:
    """Axis of the samples in each input that is made of them; `given` is that of the first input, where the user says it."""
    axes = Samples.of(model, given).inputs
    inputs = [value for value in model.graph.inputs if not value.is_initializer() and value.shape != ()]
    found = {str(value.name): axes.get(str(value.name), 0) for value in inputs}
    return {name: axis for name, axis in found.items() if axis is not None}


def splitting_of(model: ir.Model, axes: Mapping[str, int], loss: str | None = None) -> Splitting | None:
    """Cuts for batches of a model; None, and a line in the log, where they stay in one piece.

    Args:
        model: a model without functions; it is left as it is.
        axes: axis of the samples of the graph inputs that are made of them.
        loss: name of the output that is the loss, if one is.
    """
    if not axes:
        return None
    return _logged(lambda: _splitting(model.clone(), axes, loss))


def splitting_into(model: ir.Model, axes: Mapping[str, int]) -> Splitting | None:
    """As `splitting_of`, for a model whose shapes are inferred and all of whose outputs must count samples along axis 0."""
    return _logged(lambda: _splitting_into(model, axes)) if axes else None


def _splitting_into(model: ir.Model, axes: Mapping[str, int]) -> Splitting:
    kinds = follow(model, axes)
    for value in model.graph.outputs:
        if kinds.get(value) != Rows(0):
            raise Coupled(f"value {value.name!r} is not made of samples along its first axis")
    inputs = {str(value.name): axes[str(value.name)] for value in model.graph.inputs if value.name in axes}
    return Splitting(inputs, {str(value.name): 0 for value in model.graph.outputs})


def rows_of(model: ir.Model, axes: Mapping[str, int], local: Container[str | None] = ()) -> dict[str, Rows] | None:
    """Place of the samples in the outputs that are made of them; None, and a line in the log, where batches stay in one piece.

    Args:
        model: as for `splitting_of`.
        axes: as for `splitting_of`.
        local: names of outputs that only another graph reads that runs on the same parts.
    """
    return _logged(lambda: _rows_of(model.clone(), axes, local)) if axes else None


def _logged(find: Callable[[], Found]) -> Found | None:
    try:
        return find()
    except Coupled as reason:
        log.info("batches stay in one piece, and threads work inside operators: %s", reason)
        return None


def _rows_of(model: ir.Model, axes: Mapping[str, int], local: Container[str | None]) -> dict[str, Rows]:
    infer(model)
    kinds = follow(model, axes, local)
    found = {value: kinds.get(value, Same()) for value in model.graph.outputs}
    for value, kind in found.items():
        _axis(value, kind)
    return {str(value.name): kind for value, kind in found.items() if isinstance(kind, Rows)}


def _splitting(model: ir.Model, axes: Mapping[str, int], loss: str | None) -> Splitting:
    least, ranks = fewest(model), _ranks(model.graph, axes)
    infer(model)
    kinds = follow(model, axes)
    outputs = {value: kinds.get(value, Same()) for value in model.graph.outputs}
    results = {str(value.name): _axis(value, kind) for value, kind in outputs.items() if value.name != loss}
    found = next((kind for value, kind in outputs.items() if value.name == loss), Mean())
    if not isinstance(found, Mean | Total):
        raise Coupled("the loss is neither a mean nor a sum over samples")
    inputs = {str(value.name): axes[str(value.name)] for value in model.graph.inputs if value.name in axes}
    weights = None if isinstance(found, Total) or found.weight is None else _weights(model, found.weight, axes)
    return Splitting(inputs, results, ranks, isinstance(found, Total), weights, least)


def _ranks(graph: ir.Graph, axes: Container[str | None]) -> dict[str, int]:
    """Gives labels of unknown shape as many axes as the first output has, one less where they are numbers of classes."""
    output, found = graph.outputs[0].shape, {}
    for value in graph.inputs:
        if value.shape is None and value.name in axes and output is not None and output.rank():
            rank = output.rank() - (value.dtype is not None and value.dtype.is_integer())
            value.shape, found[str(value.name)] = ir.Shape([None] * rank), rank
    return found


def _axis(output: ir.Value, kind: Kind) -> int | None:
    if not isinstance(kind, Rows | Same):
        raise Coupled(f"output {output.name!r} is computed over the whole batch")
    return kind.axis if isinstance(kind, Rows) else None


def _weights(model: ir.Model, weight: ir.Value | ir.Node, fed: Container[str | None]) -> Inference:
    """Computes the sum of the weights of a part's labels; it must depend on nothing that is trained."""
    graph = model.graph
    value = _label_weights(model, weight) if isinstance(weight, ir.Node) else weight
    if value.shape is not None and any(size != 1 for size in value.shape):
        raise Coupled("the loss weighs samples in several ways")
    value.name = value.name or "onnxqat.weight"
    graph.outputs[:] = [value]
    passes.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [one for one in graph.inputs if one.uses()]
    if any(one.name not in fed for one in graph.inputs):
        raise Coupled("the weights of samples in the loss are computed from what is trained")
    return Inference(model, called="loss")


def _label_weights(model: ir.Model, node: ir.Node) -> ir.Value:
    """Writes the sum of the class weights of the labels that count, the divisor in the mean of a loss over classes."""
    op, label = Ops(opset(model)), node.inputs[1]
    assert label is not None
    ignored = node.attributes.get_int("ignore_index", None)
    counted = None
    if ignored is not None:
        counted = op.Not(op.Equal(label, op.Cast(op.ints([ignored]), to=label.dtype or ir.DataType.INT64)))
        label = op.Where(counted, label, op.Sub(label, label))
    weight = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None:
        total = op.Cast(counted, to=ir.DataType.FLOAT)
    else:
        total = op.Gather(weight, label)
        total = total if counted is None else op.Mul(total, op.Cast(counted, to=ir.DataType.FLOAT))
    total = op.ReduceSum(total, keepdims=0)
    model.graph.extend(op.nodes)
    return total
