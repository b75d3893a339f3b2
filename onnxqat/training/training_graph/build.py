"""Turns a Q/DQ model into its training graph: (batch, parameters) → (loss, gradients), a plain ONNX model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.autodiff.differentiate import differentiate
from onnxqat.data.labels import Labelling
from onnxqat.distributed import Workers
from onnxqat.errors import InputError
from onnxqat.graph import external, io
from onnxqat.graph.aside import put_weights_aside
from onnxqat.graph.biases import round_biases
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import make_inputs
from onnxqat.graph.finite import check_finite_weights
from onnxqat.graph.identities import eliminate_identities
from onnxqat.graph.ops import BLOCKED
from onnxqat.graph.qdq import Quantizer, is_quantized, quantizers, write_scalars
from onnxqat.graph.types import infer
from onnxqat.graph.without import without_quantizers
from onnxqat.names import OperatorsOf
from onnxqat.runtime.engines import chosen, kernels
from onnxqat.training.quantizers.calls import call_quantizers
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.quantizers.restore_float import restore_float
from onnxqat.training.quantizers.zero_points import add_floats, round_floats
from onnxqat.training.training_graph.losses import LOSS, AttachedLoss, Loss, attach_loss
from onnxqat.training.training_graph.memory import schedule
from onnxqat.training.training_graph.parameters import Layout, initial_values, lay_out, trainable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingGraph:
    """All that the engine runs, and where the parameters are in it.

    Attributes:
        qdq: the Q/DQ model with float weights; training changes only its initializers.
        training: (inputs, labels, parameters) → loss and gradients `<name>_grad`.
        evaluation: (inputs, labels, parameters) → the model's outputs, and the loss.
        outputs: names of the model's outputs.
        layout: place of each parameter in the flat array.
        loss: what the loss needs.
        labelling: what the user says about labels.
        block: channels of a block where convolutions run in the blocked layout; 0: the plain layout (see `blocked`).
        engine: whose operators the training graph has.
        twice: whether quantizers' outputs are computed again for the backward pass.
    """

    qdq: ir.Model
    training: ir.Model
    evaluation: ir.Model
    outputs: tuple[str, ...]
    layout: Layout
    loss: AttachedLoss
    labelling: Labelling
    block: int
    engine: OperatorsOf
    twice: bool = False

    @property
    def initial(self) -> NDArray[np.float32]:
        """The flat array as the model has it, newly made."""
        return initial_values(self.qdq.graph, self.layout)

    @property
    def used_block(self) -> int:
        """The block of the training graph as it is, 0 where nothing in it is in the blocked layout."""
        return self.block if BLOCKED in self.training.opset_imports else 0


def load_qdq(model: io.ModelLike, *, learn_zero_points: bool = False) -> ir.Model:
    """Loads a Q/DQ model and gives stored integers their float form back, zero points too if they are learned.

    Raises:
        InputError: the model has no quantizers, or no zero point that can be learned though it is asked for.
    """
    qdq = io.load(model)
    if not is_quantized(qdq):
        raise InputError("model: has no quantizers; run `onnxqat insert` on it first")
    for quantizer in quantizers(qdq):
        _check_scale(quantizer)
    check_finite_weights(qdq)
    write_scalars(quantizers(qdq))
    restore_float(qdq)
    if learn_zero_points and not add_floats(qdq):
        raise InputError(
            "learn_zero_points: the model has no zero point that training may move (they are at the lowest code, or 0 of signed "
            "codes); leave it out"
        )
    put_weights_aside(qdq)  # parameters take their place, and what else reads them does so seldom
    external.forget_all(qdq)
    return qdq


def training_graph(
    qdq: ir.Model,
    loss: Loss,
    freeze: Sequence[str] = (),
    labelling: Labelling | None = None,
    block: int = 0,
    engine: OperatorsOf = "auto",
    *,
    twice: bool = False,
) -> TrainingGraph:
    """Builds the training graph of a model that `load_qdq` returned.

    Raises:
        UnsupportedModelError: a node between a parameter and the loss has no gradient; the message names all of them.
        InputError: the loss or `freeze` does not fit the model, or the engine is not installed.
    """
    written_for = engine if engine == "standard" else chosen(engine)
    forward, layout = forward_graph(qdq, freeze)
    labelling = labelling or Labelling()
    attached = attach_loss(forward, loss, labelling)
    outputs = tuple(str(value.name) for value in forward.graph.outputs)
    names = [parameter.name for parameter in layout.parameters]
    evaluation = _evaluation(forward, names, outputs, block)
    training = _differentiated(forward, names, block, written_for, twice=twice)
    log.info("training %d initializers, %d numbers", len(names), sum(p.size for p in layout.parameters))
    return TrainingGraph(qdq, training, evaluation, outputs, layout, attached, labelling, block, written_for, twice)


def partial_training(graph: TrainingGraph, loss: Loss, unquantized: Callable[[Quantizer], bool]) -> ir.Model:
    """The training graph without some quantizers; their scales are no parameters of it, all else is as in the whole one.

    Raises:
        InputError: nothing but those scales is trained.
    """
    forward, _ = forward_graph(_with_floats_of(graph, without_quantizers(graph.qdq, unquantized)))
    attach_loss(forward, loss, graph.labelling)
    names = [one.name for one in graph.layout.parameters if one.name in forward.graph.initializers]
    if not names:
        raise InputError("model: only scales of quantizers that are not switched on yet are trained; freeze less")
    return _differentiated(forward, names, graph.block, graph.engine, twice=graph.twice)


def _differentiated(
    forward: ir.Model, names: Sequence[str], block: int, engine: OperatorsOf, *, twice: bool
) -> ir.Model:
    forward.graph.outputs[:] = [_loss_value(forward.graph)]
    training = differentiate(forward, LOSS, names)
    schedule(training, [LOSS], block, kernels(engine), twice=twice)
    return training


def forward_graph(qdq: ir.Model, freeze: Sequence[str] = ()) -> tuple[ir.Model, Layout]:
    """A copy of the model whose quantizers are calls of trainable functions, and the place of what is trained in it."""
    forward = qdq.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(forward)
    eliminate_identities(forward)
    infer(forward)
    ends = call_quantizers(forward)
    return forward, lay_out(forward.graph, trainable(forward.graph, freeze), ends)


def same_graph(graph: TrainingGraph, workers: Workers) -> TrainingGraph:
    """The training graph with the first process's initial values, in all of them.

    Raises:
        InputError: the processes have different parameters.
    """
    if workers.size == 1:
        return graph
    workers.check_same(
        crc32(repr(graph.layout).encode()), "model: differs between the processes; give all of them the same"
    )
    initial = graph.initial
    workers.broadcast(initial)
    qdq = _with_floats_of(graph, with_values(graph.qdq, graph.layout, initial))
    _set(qdq, graph.layout.named(initial))
    return replace(graph, qdq=qdq)


def with_values(qdq: ir.Model, layout: Layout, flat: NDArray[np.float32]) -> ir.Model:
    """A copy of the Q/DQ model with the parameters of the flat array; trained biases lie on their grid, as in training.

    Its weights are views of the array. Those that `insert` promised to keep pair-safe are, whatever the array holds, by scales
    raised where they must be.
    """
    model = qdq.clone()
    arrays = layout.named(flat)
    arrays.update(PairSafety(qdq).outgrown(arrays))
    _set(model, arrays)
    round_floats(model)
    trained = {parameter.name for parameter in layout.parameters}
    round_biases(model, lambda bias: bias.value.name in trained)
    return model


def _with_floats_of(graph: TrainingGraph, qdq: ir.Model) -> ir.Model:
    """The model, with floats for its zero points where these are trained."""
    if any(parameter.kind == "zero_point" for parameter in graph.layout.parameters):
        add_floats(qdq)
    return qdq


def _set(model: ir.Model, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def _check_scale(quantizer: Quantizer) -> None:
    scales = quantizer.scales
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise InputError(
            f"quantizer of {quantizer.source.name!r}: scale {quantizer.scale.name!r} holds numbers that are not positive; "
            "calibrate the model again"
        )
    stored = constant(quantizer.source)
    if stored is not None and np.issubdtype(stored.dtype, np.floating) and not np.isfinite(stored).all():
        raise InputError(f"initializer {quantizer.source.name!r}: holds NaN or infinity; repair the float model")


def _evaluation(forward: ir.Model, names: Sequence[str], outputs: Sequence[str], block: int) -> ir.Model:
    model = forward.clone()
    graph = model.graph
    make_inputs(graph, names)
    graph.outputs.append(_loss_value(graph))
    schedule(model, [*outputs, LOSS], block)
    return model


def _loss_value(graph: ir.Graph) -> ir.Value:
    return next(output for node in graph for output in node.outputs if output.name == LOSS)
