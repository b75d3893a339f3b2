"""Accuracy control: precision is raised step by step, the cheapest first, until the deployed model loses no more than allowed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import onnx

from onnxqat.config import Config
from onnxqat.config_parts import Select
from onnxqat.graph import io
from onnxqat.search.raising import Raised, Step
from onnxqat.search.sensitivity.trials import sensitivity
from onnxqat.verification.judge import Verdict

log = logging.getLogger(__name__)

#: Range estimators that are tried for activations.
ESTIMATORS = ("mse", "percentile", "min_max")
#: Layers that are left in float, the costliest first and half as many as have weights at most, before training is worth more.
FLOATS = (1, 2, 4, 8)


def raised(
    model: io.ModelLike,
    calibration: Any,
    config: Config,
    inserted: Callable[[Config], onnx.ModelProto],
    judged: Callable[[onnx.ModelProto], Verdict | None],
) -> Raised | None:
    """Raises precision until the model holds: another range estimator, corrected outputs, then the costliest layers in float.

    A step that makes the model no better is taken back. Where nothing helps enough, the best settings are the ones to train with.

    Args:
        model: the float model.
        calibration: data that ranges and sensitivity come from; labels are not needed.
        config: the settings to begin with.
        inserted: function from settings to the Q/DQ model.
        judged: function from a Q/DQ model to the verdict on what it is folded into.

    Returns:
        The settings and the path to them; None where nothing can be judged.
    """
    best: tuple[float, Config, onnx.ModelProto] | None = None
    path: list[Step] = []
    for what, change in _changes(model, calibration, config):
        tried = change(config if best is None else best[1])
        if best is not None and tried == best[1]:
            continue
        qdq = inserted(tried)
        verdict = judged(qdq)
        if verdict is None:
            return None
        step = Step(what, verdict.drop, verdict.deployed_score, verdict.drop <= verdict.allowed)
        log.info("raise precision: %s: drop %.3g of %.3g", what, step.drop, verdict.allowed)
        path.append(step)
        if best is None or step.drop < best[0]:
            best = (step.drop, tried, qdq)
        if step.holds:
            break
    assert best is not None
    return Raised(best[1], best[2], tuple(path))


def _changes(model: io.ModelLike, calibration: Any, config: Config) -> Iterator[tuple[str, Callable[[Config], Config]]]:
    """The changes in order, each on the best settings before it."""
    yield "as configured", lambda best: best
    for name in ESTIMATORS:
        if name != config.activation_range.type:
            yield f"activation ranges by {name}", _setting(activation_range=name)
    if config.correction == "none":
        yield "outputs corrected", _setting(output_correction="affine")
    found = sensitivity(model, calibration, config, widths=[config.weight_bits])
    names = list(dict.fromkeys(node for cost in found.ranked for node in cost.nodes))
    weighted = {node for cost in found.costs if cost.part == "weights" for node in cost.nodes}
    for count in FLOATS:
        if count <= len(weighted) / 2:
            rules = tuple(Select(name=name) for name in names[:count])
            yield f"in float: {', '.join(names[:count])}", _setting(ignore=(*config.ignore, *rules))


def _setting(**values: Any) -> Callable[[Config], Config]:
    return lambda best: Config(**{**dict(best), **values})
