"""Second-order estimate of what each weight's quantization costs, without labels, from gradients of the float model.

Close to the float model's answer y the distance to a quantized model's, Kullback-Leibler's for classes or the squared error, is
½ δᵀ Jᵀ H J δ for a change δ of the weights: J is the derivative of y, H the Fisher information of y (Gauss-Newton; Martens 2020,
"New Insights and Perspectives on the Natural Gradient Method"). As in HAWQ-V2 (Dong et al. 2020) and FIT (Zandonati et al. 2022)
it is estimated with random cotangents v of covariance H (Hutchinson): E[(Jᵀv · δ)²] is the quadratic form itself, so that for
every layer and width one product of a gradient and a rounding error is enough, without a trace that stands for a whole layer.
For classes v is p - e with e drawn from the model's own probabilities p, whose covariance is H.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.labels import Decisions, Labelling
from onnxqat.graph.ops import FLOAT_TYPES
from onnxqat.runtime import Inference
from onnxqat.terminal.progress import track
from onnxqat.training.gradients import Gradients
from onnxqat.verification.run import decisions_of

Array = NDArray[Any]
#: Rounding errors of a weight by width.
Errors = Mapping[int, Array]


def losses(
    model: ir.Model, errors: Mapping[str, Errors], parts: Iterable[Mapping[str, Array]], seed: int = 0
) -> dict[str, dict[int, float]]:
    """Distance from the float model's answers that each weight's rounding alone causes, to second order, in sum over the parts.

    Args:
        model: the float model.
        errors: for each initializer the rounding errors at each width.
        parts: inputs, a few samples at a time: each is one probe.
        seed: seed of the probes.
    """
    outputs = [str(value.name) for value in model.graph.outputs if value.dtype in FLOAT_TYPES or value.dtype is None]
    forward, backward = Inference(model), Gradients(model, list(errors), outputs)
    decisions, random = decisions_of(model, Labelling()), np.random.default_rng(seed)
    first = str(model.graph.outputs[0].name)
    total = {name: dict.fromkeys(widths, 0.0) for name, widths in errors.items()}
    for part in track(list(parts), "second-order sensitivity"):
        answers = forward(part)
        probes = {name: _probe(answers[name], decisions if name == first else None, random) for name in outputs}
        _, gradients = backward({name: part[name] for name in forward.inputs}, probes)
        for name, widths in errors.items():
            for bits, error in widths.items():
                total[name][bits] += 0.5 * float(np.vdot(gradients[name].astype(np.float64), error)) ** 2
    return total


def _probe(answer: Array, decisions: Decisions | None, random: np.random.Generator) -> Array:
    """A random cotangent whose covariance is the Fisher information of the answer."""
    if decisions is None or not _has_classes(answer, decisions):
        spread = max(float(np.sqrt(np.mean(np.square(answer, dtype=np.float64)))), float(np.finfo(np.float32).tiny))
        return np.asarray(random.standard_normal(answer.shape) / spread, np.float32)
    axis = decisions.class_axis(answer)
    scores = np.moveaxis(answer.astype(np.float64), axis, -1)
    is_chance = decisions.activation == "Softmax"
    chance = scores if is_chance else np.exp(scores - scores.max(axis=-1, keepdims=True))
    chance = chance / chance.sum(axis=-1, keepdims=True)
    drawn = (np.cumsum(chance, axis=-1) > random.random((*chance.shape[:-1], 1))).argmax(axis=-1)[..., None]
    hit = np.zeros_like(chance)
    np.put_along_axis(hit, drawn, 1.0, axis=-1)
    if is_chance:  # the derivative of -log p by p
        probe = -hit / np.maximum(chance, np.finfo(np.float32).tiny)
    else:
        probe = -hit if decisions.activation == "LogSoftmax" else chance - hit
    return np.ascontiguousarray(np.moveaxis(probe, -1, axis), np.float32)


def _has_classes(answer: Array, decisions: Decisions) -> bool:
    """Whether an answer is made of logits, probabilities or their logarithms."""
    if decisions.activation in ("Softmax", "LogSoftmax"):
        return True
    return decisions.activation is None and decisions.linear and answer.ndim == 2 and answer.shape[1] > 1
