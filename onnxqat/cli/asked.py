"""Requests to the stages, from the options of a call; modules load on use, so that help and refusals come at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxqat.cli import options, outputs
from onnxqat.process.launch import launched

if TYPE_CHECKING:
    from onnxqat.callbacks import History
    from onnxqat.config import Config
    from onnxqat.data import sources
    from onnxqat.data.labels import Labelling
    from onnxqat.data.sources import Source
    from onnxqat.pipeline import Outcome, recovery, request


def configuration(given: options.Quantization) -> Config:
    """Settings of quantization."""
    from onnxqat.pipeline import request

    return request.configuration(**asdict(given))


def budgeted(
    config: Config,
    budget: str | None,
    preset: str | None,
    model: Path,
    data: Source,
    metric: str,
    given: options.Judging,
) -> Config:
    """The settings, with a width for each layer where a budget, or else a preset, asks for it.

    Raises:
        InputError: time is asked for in several processes, of which each would choose for itself.
    """
    from onnxqat.pipeline import presets

    wanted: dict[str, Any] = {}
    if budget is not None:
        from onnxqat.search.mixed import Budget

        wanted = vars(Budget.parsed(budget))
        if wanted["latency"] is not None:
            _check_alone(f"--budget {budget}")
    if not wanted or wanted["drop"] is not None:
        wanted |= presets.sparing(preset, metric, wanted.get("drop"))
    if wanted:
        from onnxqat.search.mixed.search import mixed_precision

        found = mixed_precision(model, data, config, **wanted, metric=metric, **asdict(given))
        outputs.console.print(f"mixed precision: {found}")
        config = found.config
    return config


def most_time(budget: str | None) -> float | None:
    """The share of float's time that a budget asks for; None where it asks for none."""
    from onnxqat.search.mixed import Budget

    return None if budget is None else Budget.parsed(budget).latency


def _check_alone(option: str) -> None:
    """Raises InputError in several processes, of which each would measure times and choose for itself."""
    if launched():
        from onnxqat.errors import InputError

        raise InputError(
            f"{option}: one process chooses; run onnxqat insert with it and --write-config FILE, and give --config FILE here"
        )


def quickened(
    config: Config, wanted: Literal["latency"] | None, model: Path, data: Source, given: options.Judging
) -> Config:
    """The settings, with layers in float that are slower in integers, where that is wanted.

    Raises:
        InputError: there are several processes, of which each would choose for itself.
    """
    if wanted is not None:
        _check_alone("--for latency")
        from onnxqat.search.latency.choice import faster

        found = faster(model, data, config, **asdict(given))
        outputs.console.print(f"latency: {found}")
        config = found.config
    return config


def labelling(given: options.Labels) -> Labelling:
    """Settings about labels."""
    from onnxqat.data.labels import Labelling

    return Labelling(**asdict(given))


def training(
    given: options.Training,
    execution: options.Execution,
    labels: options.Labels,
    metric: str | None,
    preset: str | None = None,
) -> request.Training:
    """Settings of training, those of a preset where none are given."""
    from onnxqat.data import sources
    from onnxqat.pipeline import presets, request
    from onnxqat.training.execution import Execution

    plain = asdict(given) | {"until": None if given.until is None else request.bound(given.until)}
    plain |= {"judged_by": metric, "loss": request.losses(given.loss)}
    plain["augment"] = None if given.augment is None else sources.resolve(given.augment)
    plain["lr"] = None if given.lr is None else request.rate(given.lr)
    if preset is not None:
        of_preset = presets.preset(preset)
        plain["lr"] = of_preset.lr if plain["lr"] is None else plain["lr"]
        if given.steps is None and given.epochs is None:
            plain["epochs"] = of_preset.epochs
    how = Execution(**asdict(execution))
    return request.Training(**plain, distributed=launched(), labelling=labelling(labels), execution=how)


def learning(given: options.Learning, labels: options.Labels) -> request.Training:
    """Settings of training that its graphs depend on."""
    from onnxqat.pipeline import request

    return request.Training(**asdict(given) | {"loss": request.losses(given.loss)}, labelling=labelling(labels))


def reconstructs(given: bool | None, quantization: options.Quantization) -> bool:
    """Whether blocks are reconstructed: as is asked for, or else as the preset has it."""
    from onnxqat.pipeline import presets

    if given is None and quantization.preset is not None:
        return presets.preset(quantization.preset).reconstruct
    return bool(given)


def judge(
    given: options.Judging, metric: str | None, labels: options.Labels, max_drop: float | None = None
) -> request.Judge:
    """Settings of verification."""
    from onnxqat.pipeline import request

    return request.Judge(**asdict(given), metric=metric, labelling=labelling(labels), max_drop=max_drop)


def raising(reconstructed: bool) -> Callable[..., Outcome | None]:
    """The run that raises precision.

    Raises:
        InputError: blocks are to be reconstructed too.
    """
    from onnxqat.errors import InputError
    from onnxqat.pipeline.raising import run_raising

    if reconstructed:
        raise InputError("--raise-precision: does not reconstruct blocks; leave --reconstruct and such a preset out")
    return run_raising


def followed(keeping: recovery.Keeping, *reports: Path | None) -> tuple[recovery.Keeping, History]:
    """Files and figures that a run keeps, with its curves where a report shall show them."""
    from onnxqat.callbacks import History

    history = History()
    return keeping if not any(reports) else replace(keeping, callbacks=[*keeping.callbacks, history]), history


def show_plan(model: Path, source: sources.Source, config: Config, sample_axis: int | None) -> None:
    """Prints what would be quantized."""
    from onnxqat.cli import inspection
    from onnxqat.graph import io
    from onnxqat.pipeline.plan import planned

    found = io.load(planned(model, source, config, sample_axis))
    outputs.console.print(inspection.quantization_table(found, scales=False))


def keeping(given: options.Keeping, output: Path) -> recovery.Keeping:
    """Settings for what a run keeps.

    Raises:
        InputError: the call cannot go on from the folder of checkpoints, or begin in it.
    """
    from onnxqat import callbacks
    from onnxqat.graph import files
    from onnxqat.pipeline import recovery

    recovery.check_resume(given.checkpoint, resume=given.resume)
    return recovery.Keeping(
        lambda model: outputs.write(model, output),
        callbacks.from_options(
            given.log_file, given.tensorboard, given.patience, given.checkpoint, given.checkpoint_every
        ),
        given.checkpoint if given.resume else None,
        recovery.of_call(sys.argv[1:], given.checkpoint, output),
        lambda model: None if files.is_stream(output) else recovery.save(model, output),
        given.strict,
    )
