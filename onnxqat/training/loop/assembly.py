"""Builds what takes the steps of a `Trainer`, from its arguments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxqat.data.labels import Labelling
from onnxqat.distributed import Workers
from onnxqat.graph import io
from onnxqat.runtime import explained
from onnxqat.training.execution import Execution
from onnxqat.training.loop.feeds import feeds_for
from onnxqat.training.loop.staging import Stages
from onnxqat.training.loop.steps import Steps
from onnxqat.training.optimize.optimizers import AdamW, Optimizer
from onnxqat.training.optimize.presets import rate_of
from onnxqat.training.optimize.schedules import Rate, Schedule
from onnxqat.training.own import check_numbers, check_own
from onnxqat.training.training_graph.build import load_qdq, same_graph, training_graph
from onnxqat.training.training_graph.losses import Loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Arguments of `Trainer` that decide on the result, so that a run only resumes with the same; see there.

    Raises:
        InputError: one is out of range, or another library's.
    """

    loss: Loss
    optimizer: Optimizer | None
    schedule: Rate
    freeze: Sequence[str]
    teacher: io.ModelLike | None
    clip_norm: float | None
    accumulate: int
    labelling: Labelling
    seed: int
    learn_zero_points: bool

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            check_own("optimizer", self.optimizer, Optimizer, "SGD or AdamW")
        check_own("schedule", self.schedule, Rate, "Constant, Cosine or StepDecay")
        check_numbers(self.clip_norm, self.accumulate, self.seed)

    def named(self) -> dict[str, Any]:
        """The arguments by the names that `Trainer` has for them."""
        given = {name: value for name, value in vars(self).items() if name != "labelling"}
        teacher = Path(self.teacher) if isinstance(self.teacher, str) else self.teacher
        return {**given, "freeze": tuple(self.freeze), "teacher": teacher, **asdict(self.labelling)}


def assembled(qdq: io.ModelLike, arguments: Arguments, workers: Workers, execution: Execution) -> Steps:
    """Returns what takes the steps of a trainer with these arguments.

    Raises:
        InputError: the model has no quantizers, an argument does not fit it, or the engine is not installed.
        UnsupportedModelError: nodes between parameters and loss have no gradient; the message names all of them.
    """
    with explained(qdq):
        loaded = load_qdq(qdq, learn_zero_points=arguments.learn_zero_points)
        loss, freeze = arguments.loss, arguments.freeze
        block, engine = execution.block, execution.engine
        graph = training_graph(loaded, loss, freeze, arguments.labelling, block, engine, twice=execution.twice)
    graph = same_graph(graph, workers)
    if not execution.device.is_cpu:
        log.info(
            "graphs run on %s, convolutions in the plain layout and batches in one piece; optimizer steps run on the CPU",
            execution.device.name,
        )
    return Steps(
        graph,
        feeds_for(graph, arguments.teacher, execution),
        Stages(graph, arguments.loss),
        arguments.optimizer or AdamW(rate_of(graph.qdq)),
        Schedule(arguments.schedule),
        workers,
        clip_norm=arguments.clip_norm,
        accumulate=arguments.accumulate,
        seed=arguments.seed,
        execution=execution,
    )
