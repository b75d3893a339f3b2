"""Record of a run: what its checkpoints say it was made from, and the checkpoint that it goes on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxqat.training.execution import Execution
from onnxqat.training.loop.steps import Steps
from onnxqat.training.resume import checkpoint, checkpoint_files
from onnxqat.training.resume.checkpoint_files import Facts, Tensors
from onnxqat.training.resume.identity import Origin

log = logging.getLogger(__name__)


class Record:
    """Writes the checkpoints of a run, and takes one in.

    Args:
        steps: takes the steps of the run.
        arguments: arguments of `Trainer` that decide on the result, by name.
        execution: how its graphs run.

    Attributes:
        resumed_from: checkpoint that the run goes on from; None: none.
        remembered: what that checkpoint holds besides the state, until `fit` has used it.
    """

    def __init__(self, steps: Steps, arguments: Mapping[str, Any], execution: Execution) -> None:
        self.resumed_from: Path | None = None
        self.remembered: checkpoint.Remembered | None = None
        self._steps, self._arguments, self._execution = steps, arguments, execution
        self._made_from: Origin | None = None

    def origin(self) -> Origin:
        """Returns what checkpoints say this run was made from; constant unless the optimizer was exchanged."""
        optimizer = self._steps.optimizer
        if self._made_from is None or self._made_from.arguments["optimizer"] != optimizer:
            arguments = {**self._arguments, "optimizer": optimizer}
            self._made_from = Origin(self._steps.graph, arguments, self._execution, self._steps.workers.size)
        return self._made_from

    def write(self, path: Path, callbacks: Sequence[tuple[str, Facts]]) -> None:
        """Writes a checkpoint with the states of these callbacks; of several processes, only the first does.

        Raises:
            InputError: the path cannot be written.
        """
        if not self._steps.workers.is_first:
            return
        origin = self.origin()
        tensors, facts = checkpoint.collect(self._steps.state, self._steps.last, callbacks)
        checkpoint_files.write(path, {**origin.tensors, **tensors}, {**origin.facts, **facts})

    def take(self, tensors: Tensors, facts: Facts, *, strict: bool = False) -> None:
        """Takes in a checkpoint that `checkpoint.load` has read.

        Raises:
            InputError: it is of another run, or was made in another way, and `strict` asks; the message says in what it differs.
        """
        with checkpoint_files.understood(facts["path"]):
            self.origin().check(facts, strict=strict)
            self.remembered = checkpoint.restore(self._steps.state, tensors, facts)
        self.resumed_from = Path(facts["path"])
        position = self._steps.state.schedule.position
        log.info("%s: going on after step %d, epoch %d", facts["path"], position.step, position.epoch)
