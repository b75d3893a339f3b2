"""Staged quantization: activations or weights run in float until the epochs that `insert` left in the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.qdq import Quantizer
from onnxqat.training.running.engine import Engine
from onnxqat.training.training_graph.build import TrainingGraph, partial_training
from onnxqat.training.training_graph.losses import Loss

log = logging.getLogger(__name__)

#: Keys of the model's metadata.
KEYS = {"activations": "onnxqat.activation_start_epoch", "weights": "onnxqat.weight_start_epoch"}


@dataclass(frozen=True)
class Stage:
    """Stage of training: whether weights and activations are quantized."""

    activations: bool = True
    weights: bool = True

    def leaves_out(self, quantizer: Quantizer) -> bool:
        """Whether the quantizer is not switched on."""
        return not (self.weights if quantizer.is_weight else self.activations)


@dataclass(frozen=True)
class StartEpochs:
    """Epochs, counted from 0, at which quantization begins; 0: from the start.

    Attributes:
        activations: of activations.
        weights: of weights.
    """

    activations: int = 0
    weights: int = 0

    @classmethod
    def of(cls, model: ir.Model) -> StartEpochs:
        """Reads what `insert` left in the model.

        Raises:
            InputError: it is no number.
        """
        return cls(**{kind: _epoch(model, key) for kind, key in KEYS.items()})

    def at(self, epoch: int) -> Stage:
        """The stage of an epoch."""
        return Stage(epoch >= self.activations, epoch >= self.weights)

    def note(self, model: ir.Model, epoch: int) -> None:
        """Leaves in a model how many epochs are still to go, so that training it further begins where this run is."""
        for kind, key in KEYS.items():
            remaining = max(getattr(self, kind) - epoch, 0)
            if remaining:
                model.metadata_props[key] = str(remaining)
            else:
                model.metadata_props.pop(key, None)


class Stages:
    """Stages of training, and the training graph of each.

    The stage depends only on the epoch, so that a run resumed in the middle is in the right one. Parameters and the
    optimizer's moments lie in the same flat arrays throughout: a scale that is not in use has gradient 0 and stays as it is.
    """

    def __init__(self, graph: TrainingGraph, loss: Loss) -> None:
        self._graph, self._loss = graph, loss
        self._starts = StartEpochs.of(graph.qdq)
        self._entered = Stage()

    def enter(self, epoch: int, engine: Engine) -> bool:
        """Lets the engine run the training graph of that epoch's stage; returns whether it did not do so before."""
        stage = self._starts.at(epoch)
        if stage == self._entered:
            return False
        whole = stage == Stage()
        engine.use(self._graph.training if whole else partial_training(self._graph, self._loss, stage.leaves_out))
        quantized = [kind for kind in KEYS if getattr(stage, kind)]
        log.info("epoch %d: %s quantized", epoch + 1, f"{' and '.join(quantized)} are" if quantized else "nothing is")
        self._entered = stage
        return True

    def recompute(self, engine: Engine) -> None:
        """Lets the engine compute outputs of quantizers again for the backward pass, from the next step on."""
        graph = replace(self._graph, twice=True)
        whole = partial_training(graph, self._loss, Stage().leaves_out)
        self._graph = replace(graph, training=whole)
        entered = self._entered
        engine.use(whole if entered == Stage() else partial_training(graph, self._loss, entered.leaves_out))

    def note(self, model: ir.Model, epoch: int) -> None:
        """See `StartEpochs`."""
        self._starts.note(model, epoch)


def _epoch(model: ir.Model, key: str) -> int:
    text = model.metadata_props.get(key, "0")
    if not text.isdecimal():
        raise InputError(f"model: its metadata {key!r} is {text!r}, not an epoch; insert quantizers again")
    return int(text)
