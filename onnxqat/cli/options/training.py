"""Options of training, and of what a run keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from typer import Option

from onnxqat.names import EngineName, LayoutName, MemoryName, OptimizerName


@dataclass(frozen=True)
class Learning:
    """Settings of training that its graphs depend on."""

    TITLE: ClassVar[str] = "Training"

    loss: Annotated[
        list[str],
        Option(help="A named loss, such as cross_entropy, mse, l1, bce_with_logits and distill; several add up."),
    ] = field(default_factory=lambda: ["cross_entropy"])
    optimizer: Annotated[OptimizerName, Option(help="Optimizer that takes the steps.")] = "adamw"
    weight_decay: Annotated[float, Option(help="Weight decay of the optimizer.")] = 0.0
    freeze: Annotated[
        list[str], Option(help="Name or pattern of nodes or initializers to leave as they are.", show_default=False)
    ] = field(default_factory=list)


@dataclass(frozen=True)
class Training(Learning):
    """Settings of training, the same for `train` and for `run`; the fields are those of `request.Training`."""

    loss: Annotated[
        list[str],
        Option(
            help="A named loss: cross_entropy, mse, l1, bce_with_logits, distill; several add up. Or package:function, an ONNX "
            "function from outputs and labels to a scalar. auto: cross_entropy where labels are classes, distill, against the "
            "float model, where there are none."
        ),
    ] = field(default_factory=lambda: ["auto"])

    epochs: Annotated[int | None, Option(help="Passes over the data. (default: 3)", show_default=False)] = None
    steps: Annotated[
        int | None,
        Option(help="End after this many optimizer steps, in whatever epoch, instead of --epochs.", show_default=False),
    ] = None
    until: Annotated[
        str | None,
        Option(
            metavar="METRIC=NUMBER",
            help="Stop as soon as --validation gives at least that accuracy (accuracy=0.92), or at most that loss.",
            show_default=False,
        ),
    ] = None
    augment: Annotated[
        str | None,
        Option(
            metavar="PACKAGE:FUNCTION",
            help="Function from a batch to train on to another, as by random flips. (default: none)",
            show_default=False,
        ),
    ] = None
    lr: Annotated[
        str | None,
        Option(
            metavar="RATE|auto",
            help="Largest learning rate; warm-up, then a cosine to 0. auto: found by a range test of 50 steps. (default: 1e-5 at "
            "8 bits, 3e-4 at 6, 1e-3 at 4 and less; at most 1e-4 after reconstruction)",
            show_default=False,
        ),
    ] = None
    clip_norm: Annotated[
        float | None, Option(help="Largest norm of the gradient. (default: no limit)", show_default=False)
    ] = None
    accumulate: Annotated[int, Option(help="Batches whose gradients make one optimizer step.")] = 1
    seed: Annotated[int, Option(help="Seed of the data's order.")] = 0
    learn_zero_points: Annotated[
        bool,
        Option("--learn-zero-points", help="Train zero points of values too (LSQ+); for few bits in Transformers."),
    ] = False
    teacher: Annotated[
        Path | None,
        Option(
            help="Model that the loss distill learns from. (default: the float model; in train that without quantizers)",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Execution:
    """Settings of how training runs; the fields are those of `training.execution.Execution`."""

    TITLE: ClassVar[str] = "Execution"

    threads: Annotated[int, Option(help="Cores to use: parts of a batch at once; 0: all.")] = 0
    layout: Annotated[
        LayoutName,
        Option(help="auto: blocked convolutions where this processor has them and they are faster; or plain."),
    ] = "auto"
    engine: Annotated[
        EngineName,
        Option(help="Kernels of onnxruntime-training, operators of any onnxruntime, or the first where installed."),
    ] = "auto"
    memory: Annotated[
        MemoryName, Option(help="low: less memory for up to a tenth more time, moments of weights in 8 bits; or auto.")
    ] = "auto"
    provider: Annotated[
        str, Option(help="Execution provider that runs training: cpu, cuda, or any that ONNX Runtime lists.")
    ] = "cpu"


@dataclass(frozen=True)
class Keeping:
    """Settings for what a run keeps while it goes on, and where."""

    TITLE: ClassVar[str] = "Logs and checkpoints"

    log_file: Annotated[Path | None, Option(help="Append a JSON line per step and epoch to this file.")] = None
    tensorboard: Annotated[Path | None, Option(help="Write event files for TensorBoard to this folder.")] = None
    patience: Annotated[int | None, Option(help="Stop after this many epochs without improvement.")] = None
    checkpoint: Annotated[
        Path | None, Option(help="Folder for a checkpoint after each epoch; the two newest are kept.")
    ] = None
    checkpoint_every: Annotated[
        int | None, Option(help="Also write a checkpoint each time this many batches are done.")
    ] = None
    resume: Annotated[bool, Option("--resume", help="Resume from the newest checkpoint.")] = False
    strict: Annotated[
        bool,
        Option("--strict", help="Refuse a checkpoint of another engine, provider or number of threads, not only warn."),
    ] = False
