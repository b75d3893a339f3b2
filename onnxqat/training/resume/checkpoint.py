"""Checkpoints: all that a run must remember, and how a trainer resumes from it as if it had never stopped.

One safetensors file (see `checkpoint_files`) holds what the run was made from (see `identity`) and its `State`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.data.batch import Batch
from onnxqat.errors import InputError
from onnxqat.graph.aside import put_aside
from onnxqat.training.optimize.schedules import Position
from onnxqat.training.resume import checkpoint_files as files
from onnxqat.training.resume import random_state
from onnxqat.training.resume.checkpoint_files import Facts, Tensors
from onnxqat.training.resume.identity import FORMAT
from onnxqat.training.resume.state import State

log = logging.getLogger(__name__)

#: Fields of a state that JSON holds as they are.
_PLAIN = tuple(
    field.name
    for field in dataclasses.fields(State)
    if field.name not in ("parameters", "moments", "accumulated", "schedule", "best", "random")
)


def load(path: str | os.PathLike[str]) -> tuple[Tensors, Facts]:
    """A checkpoint, or the newest whole one of a folder; the facts say under `path` which.

    Raises:
        InputError: none is there, it is damaged, or another version wrote it.
    """
    path = Path(path)
    found, tensors, facts = files.read_newest(path) if not path.is_file() else (path, *files.read(path))
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{found}: is of format {facts.get('format')}, this version of onnxqat reads format {FORMAT}; "
            "use the version that wrote it, or start a new run"
        )
    return tensors, {**facts, "path": str(found)}


@dataclasses.dataclass
class Remembered:
    """Part of a checkpoint that a resumed `fit` needs besides the state.

    Attributes:
        last_batch: fingerprint of the last batch trained on.
        callbacks: name and state of each callback whose state is not restored yet.
    """

    last_batch: int | None
    callbacks: list[tuple[str, Facts]]

    def compare(self, batch: Batch) -> None:
        """Warns once if the data gives another batch than the first time."""
        if self.last_batch is not None and fingerprint(batch) != self.last_batch:
            log.warning(
                "data: gives other batches than before the run was stopped, so the run continues with other results; "
                "check where the order of the data comes from"
            )
        self.last_batch = None


def collect(state: State, last: Batch | None, callbacks: Sequence[tuple[str, Facts]]) -> tuple[Tensors, Facts]:
    """Every field of a state, arrays as tensors, all else as facts.

    Args:
        state: what is written.
        last: the last batch trained on, whose fingerprint is written.
        callbacks: name and state of each callback that has one.
    """
    tensors: dict[str, NDArray[Any]] = {"parameters": state.parameters}
    tensors |= {f"moment_{number}": moment for number, moment in enumerate(state.moments)}
    if state.accumulated is not None:
        tensors["accumulated"] = state.accumulated
    if state.best is not None:
        tensors["best"] = state.best[0]
    facts = {name: getattr(state, name) for name in _PLAIN}
    facts["schedule"] = dataclasses.asdict(state.schedule.position)
    facts["best"] = None if state.best is None else state.best[1]
    facts["random"] = state.random if state.random is not None else random_state.capture()
    facts["last_batch"] = fingerprint(last) if last is not None and state.batch else None
    facts["callbacks"] = list(callbacks)
    return tensors, facts


def restore(state: State, tensors: Tensors, facts: Facts) -> Remembered:
    """The inverse of `collect`: into the arrays of `state`, since sessions are bound to them."""
    state.parameters[:] = tensors["parameters"]
    for number, moment in enumerate(state.moments):
        moment[:] = tensors[f"moment_{number}"]
    if state.accumulated is not None:
        state.accumulated[:] = tensors["accumulated"]
    for name in _PLAIN:
        setattr(state, name, facts[name])
    state.schedule.position = Position(**facts["schedule"])
    state.best = (put_aside([ir.tensor(tensors["best"])])[0], facts["best"]) if "best" in tensors else None
    state.random = facts["random"]
    random_state.restore(facts["random"])
    return Remembered(facts["last_batch"], [(name, held) for name, held in facts["callbacks"]])


def fingerprint(batch: Batch) -> int:
    """A checksum of a batch's arrays."""
    total = 0
    for name in sorted(batch):
        total = zlib.crc32(np.ascontiguousarray(batch[name]).reshape(-1).view(np.uint8).data, total)
    return total
