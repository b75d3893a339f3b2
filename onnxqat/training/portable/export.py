"""Writes the files of a training run. All parameters lie in one flat array, all gradients in another of the same order.

- `training.onnx`: inputs of a batch, its labels, parameters → loss, gradients;
- `optimizer.onnx`: parameters, gradients, moments, learning rate, number of the step (from 1) → new parameters and moments;
- `evaluation.onnx`: inputs of a batch, its labels, parameters → the model's outputs, loss;
- `parameters.bin`: the flat array to begin with, float32, little-endian;
- `training.json`: names of all of these inputs and outputs, and the place of each initializer in the array.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxqat.data.labels import Labelling
from onnxqat.errors import InputError
from onnxqat.graph import files, io
from onnxqat.runtime import check_loads
from onnxqat.training.optimize.optimizers import AdamW, Optimizer
from onnxqat.training.portable import flat
from onnxqat.training.portable.optimizer import optimizer_graph
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.training_graph.build import TrainingGraph, load_qdq, training_graph
from onnxqat.training.training_graph.logits import CLASS_AXIS
from onnxqat.training.training_graph.loss_inputs import LABEL
from onnxqat.training.training_graph.losses import LOSS, Loss

FORMAT = 1
#: Settings of sessions without which ONNX Runtime may run training graphs on integer kernels.
SESSION = {"session.disable_quant_qdq": "1"}
_BINARY = files.Kind("an array of parameters", lambda path: path.stat().st_size % 4 == 0, text=False)


def export_training(
    qdq: io.ModelLike,
    folder: str | os.PathLike[str],
    *,
    loss: Loss = "cross_entropy",
    optimizer: Optimizer | None = None,
    freeze: Sequence[str] = (),
    labelling: Labelling | None = None,
) -> None:
    """Writes what trains a Q/DQ model in any ONNX Runtime, into a folder that is made where it does not exist.

    Args:
        qdq: the model.
        folder: where to write.
        loss: as of `Trainer`; one that learns from a teacher cannot be exported.
        optimizer: `SGD` or `AdamW`; None: `AdamW()`.
        freeze: as of `Trainer`.
        labelling: how labels belong to the first output.

    Example:
        ```python
        onnxqat.export_training("model.qdq.onnx", "device", optimizer=onnxqat.AdamW(lr=1e-4))
        ```

    Raises:
        InputError: an argument does not fit the model, or the folder cannot be written.
        UnsupportedModelError: nodes between parameters and loss have no gradient; the message names all of them.
    """
    path, chosen = Path(folder), optimizer if optimizer is not None else AdamW()
    graph = training_graph(load_qdq(qdq), loss, freeze, labelling, engine="standard")
    _check(graph)
    _give_labels_ranks(graph)
    initial = graph.initial
    PairSafety(graph.qdq).hold(graph.layout.named(initial))
    models = {
        "training": flat.training(graph.training, graph.layout),
        "optimizer": optimizer_graph(chosen, graph.qdq, graph.layout, initial),
        "evaluation": flat.evaluation(graph.evaluation, graph.layout),
    }
    facts = {"format": FORMAT, "session": SESSION, **_described(graph, models), "parameters": _places(graph)}
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); choose another path") from error
    for name, model in models.items():
        check_loads(model)
        io.save(model, path / f"{name}.onnx")
    content = initial.astype("<f4").tobytes()
    files.write(path / "parameters.bin", _BINARY, lambda file: file.write_bytes(content))
    files.write_text(json.dumps(facts, indent=2), path / "training.json", files.JSON)


def _check(graph: TrainingGraph) -> None:
    if graph.loss.distilled:
        raise InputError("loss: learns from a teacher, which cannot be exported; choose a loss with labels")
    if any(value.name == CLASS_AXIS for value in graph.training.graph.inputs):
        raise InputError("loss: the model does not show which axis of its output holds the classes; give class_axis")


def _give_labels_ranks(graph: TrainingGraph) -> None:
    """Says how many axes labels have, as valid ONNX must; a loss of the user's own takes what it takes."""
    shape = graph.qdq.graph.outputs[0].shape
    if graph.loss.judged is None or shape is None:
        return
    rank = len(shape) - (graph.loss.judged == "classes")
    for value in (*graph.training.graph.inputs, *graph.evaluation.graph.inputs):
        if str(value.name).startswith(LABEL):
            value.shape = ir.Shape([None] * rank)


def _described(graph: TrainingGraph, models: dict[str, ir.Model]) -> dict[str, Any]:
    """Inputs and outputs of the models: names in the files by what they are."""
    of_batch = [str(value.name) for value in graph.qdq.graph.inputs if not value.is_initializer()]
    batch = {"inputs": of_batch, "labels": {name: f"{LABEL}{name}" for name in graph.loss.labels}}
    moments = range(len(models["optimizer"].graph.outputs) - 1)
    return {
        "training": {
            "file": "training.onnx",
            **batch,
            "parameters": flat.PARAMETERS,
            "loss": LOSS,
            "gradients": flat.GRADIENTS,
        },
        "optimizer": {
            "file": "optimizer.onnx",
            "parameters": flat.PARAMETERS,
            "gradients": flat.GRADIENTS,
            "moments": [f"moment_{i}" for i in moments],
            "learning_rate": "learning_rate",
            "step": "step",
            "new_parameters": "new_parameters",
            "new_moments": [f"new_moment_{i}" for i in moments],
        },
        "evaluation": {
            "file": "evaluation.onnx",
            **batch,
            "parameters": flat.PARAMETERS,
            "outputs": list(graph.outputs),
            "loss": LOSS,
        },
    }


def _places(graph: TrainingGraph) -> dict[str, Any]:
    """Place of each initializer."""
    places = [{"name": p.name, "offset": p.offset, "shape": list(p.shape)} for p in graph.layout.parameters]
    return {"file": "parameters.bin", "size": graph.layout.size, "initializers": places}
