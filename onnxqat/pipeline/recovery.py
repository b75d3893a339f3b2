"""Writes the results of long work that ends early, and says how to resume it."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.errors import InputError
from onnxqat.graph import files, io
from onnxqat.process.launch import launched, rank
from onnxqat.training.callbacks.goal import Until
from onnxqat.training.callbacks.ready_made import Callback
from onnxqat.training.callbacks.start import Start
from onnxqat.training.optimize.schedules import Length
from onnxqat.training.resume import checkpoint_files
from onnxqat.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovery:
    """Way to resume a run that ends early.

    Attributes:
        folder: folder of its checkpoints, where one is written when a signal ends it; None: none is written.
        command: function from a folder of checkpoints to the command line that resumes from it.
    """

    folder: Path | None
    command: Callable[[Path], str]


@dataclass(frozen=True)
class Keeping:
    """Way in which the results of a run are kept.

    Attributes:
        write: called with the model as soon as there is one, also when a signal or an error ends training early.
        callbacks: see `Trainer.fit`.
        resume: folder of checkpoints to resume from; None: a new run.
        recovery: how to resume a run that a signal ends; None: it cannot be resumed.
        note: called with the deployed model once more when its scores are known, and noted in it.
        strict: whether a checkpoint is refused that was made in another way (see `Trainer.resume`).
    """

    write: Callable[[ir.Model], None]
    callbacks: Sequence[Callback] = ()
    resume: Path | None = None
    recovery: Recovery | None = None
    note: Callable[[onnx.ModelProto], None] = lambda model: None
    strict: bool = False


def of_call(arguments: Sequence[str], checkpoint: Path | None, output: Path) -> Recovery | None:
    """Returns how a call of the command line can be resumed; None for one of several processes.

    Args:
        arguments: arguments of the call.
        checkpoint: its folder of checkpoints; None: one beside the output, where a signal ends the run.
        output: path that it writes to.
    """
    if launched():
        return None
    beside = None if files.is_stream(output) else output.with_name(f"{output.name}.checkpoints")

    def command(folder: Path) -> str:
        given = [argument for argument in arguments if argument != "--resume"]
        folders = [] if checkpoint is not None else ["--checkpoint", str(folder)]
        return shlex.join(["onnxqat", *given, *folders, "--resume"])

    return Recovery(checkpoint or beside, command)


def check_resume(checkpoint: Path | None, *, resume: bool) -> None:
    """Raises InputError for a folder of checkpoints that this call cannot resume from, or begin in."""
    if checkpoint is not None and rank() == 0:
        checkpoint_files.check_folder(checkpoint, begun=resume)
    elif resume and checkpoint is None:
        raise InputError("--resume: no folder of checkpoints is given; add --checkpoint DIR")


def fit(
    run: Trainer,
    length: Length,
    source: sources.Source,
    validation: sources.Source | None,
    keeping: Keeping,
    until: Until | None = None,
    metric: str | None = None,
    augment: sources.Transform | None = None,
) -> None:
    """Trains and keeps the model; if a signal or an error ends the run early, it keeps the best model so far, or the last step.

    Of several processes, only the first keeps it.
    """
    begun = run.schedule.position.step
    try:
        judged = [] if validation is None or isinstance(validation, Iterator) else [Start(validation)]
        run.fit(
            source,
            length.epochs,
            validation,
            [*judged, *keeping.callbacks],
            steps=length.steps,
            until=until,
            metric=metric,
            augment=augment,
        )
    except BaseException as error:
        if rank() == 0 and run.schedule.position.step > begun:
            _keep_what_was_reached(run, error, keeping)
        raise
    if rank() == 0:
        keeping.write(run.view())


def _keep_what_was_reached(run: Trainer, error: BaseException, keeping: Keeping) -> None:
    position, stopped = run.schedule.position, isinstance(error, KeyboardInterrupt)
    cause = f"interrupted by {getattr(error, 'cause', 'Ctrl-C')}" if stopped else "ended early"
    onward = _checkpoint(run, keeping.recovery) if stopped and keeping.recovery is not None else ""
    which = "the best model so far" if run.take_best() else "the last step"
    keeping.write(run.view())
    log.warning(
        "%s in epoch %d, after step %d: written are the parameters of %s%s",
        cause,
        position.epoch + 1,
        position.step,
        which,
        onward,
    )


def _checkpoint(run: Trainer, recovery: Recovery) -> str:
    """Writes a checkpoint and says how to resume from it; if that fails, the model is written all the same."""
    if recovery.folder is None:
        return ""
    try:
        recovery.folder.mkdir(parents=True, exist_ok=True)
        run.save(checkpoint_files.next_path(recovery.folder))
    except (InputError, OSError) as error:
        log.warning("no checkpoint: %s", error)
        return ""
    return f"; resume with: {recovery.command(recovery.folder)}"


def save(model: onnx.ModelProto | ir.Model, path: Path) -> None:
    """Writes the result of long work; if its path has become impossible meanwhile, to another place.

    Raises:
        InputError: the path cannot be written; the message says where the model is instead.
    """
    try:
        io.save(model, path)
    except InputError as error:
        if files.is_stream(path):
            raise
        elsewhere = Path(tempfile.mkdtemp(prefix="onnxqat-")) / "rescued.onnx"
        io.save(model, elsewhere)
        raise InputError(f"{error}; the model is in {elsewhere} instead") from error
