"""The options, each described once; those that commands share stand in groups (see `groups`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from onnxqat.names import TARGETS, EngineName, LayoutName, MemoryName, OptimizerName, RuntimeName

#: The option --help of a group has a value where it is not given, for which typer then loads no pydantic.
HELP = {"default_map": {"help": False}}

Model = Annotated[Path, Argument(help="ONNX file.", show_default=False)]
Output = Annotated[
    Path,
    Option("-o", "--output", help="File to write, whole or not at all; - for standard output.", show_default=False),
]
DATA_HELP = (
    "An .npz file with arrays named as the model's inputs (and label), a table (.csv, .parquet), a folder of such files, "
    "of images (a folder for each class) or of .npy files, a saved Hugging Face dataset, or package.module:function."
)
Data = Annotated[str, Option(help=DATA_HELP, show_default=False)]
CalibrationData = Annotated[
    str | None,
    Option(help="Data that ranges come from. (default: the first 1,024 samples of --data)", show_default=False),
]
ValidationData = Annotated[
    str | None, Option(help="Data that each epoch is judged on; the best one is kept.", show_default=False)
]
TestData = Annotated[
    str | None,
    Option(help="Data that the report is made on. (default: --validation, or else --data)", show_default=False),
]
BatchSize = Annotated[
    int, Option(help="Rows per batch, for data in files; 1 for a model that takes one sample at a time.")
]
Reconstruct = Annotated[
    bool | None,
    Option(
        "--reconstruct/--no-reconstruct",
        help="Then bring each block closer to the float model, without labels, as the command reconstruct does.",
        show_default=False,
    ),
]
METRIC_HELP = (
    "accuracy, topK, binary_accuracy, f1, iou, map, mse, psnr, ssim, pearson, perplexity or wer; or package.module:function from "
    "outputs and labels to a number per sample."
)
MetricName = Annotated[str, Option(help=METRIC_HELP)]
MetricOfLoss = Annotated[
    str | None, Option(help=f"{METRIC_HELP} It chooses the best epoch too. (default: that of the loss)")
]
MetricOfEpochs = Annotated[
    str | None,
    Option("--metric", help=f"{METRIC_HELP} The best epoch is chosen by it. (default: accuracy, or the loss)"),
]
MaxDrop = Annotated[
    float | None,
    Option(
        help="Largest drop from the float model, in points of accuracy, dB of psnr or percent of an mse; without labels, in "
        "percent of other answers. A larger one ends with exit status 1.",
        show_default=False,
    ),
]
Json = Annotated[
    Path | None, Option(help="Write the report to this file too; - for standard output.", show_default=False)
]
Report = Annotated[
    Path | None,
    Option(
        help="Write a page for a browser to this file: summary, curves, layers with histograms, graph.",
        show_default=False,
    ),
]
DryRun = Annotated[
    bool,
    Option(
        "--dry-run",
        help="Only print what would be quantized, and how; one batch of the data is read, nothing is written.",
    ),
]
RaisePrecision = Annotated[
    bool,
    Option(
        "--raise-precision",
        help="Raise precision step by step until no more than --max-drop is lost: other range estimators, corrected outputs, the "
        "costliest layers in float, and training only if that is not enough.",
    ),
]
SaveDir = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="Also keep every stage's model, the effective settings, all figures and the page in this folder, for compare.",
        show_default=False,
    ),
]
Budget = Annotated[
    str | None,
    Option(
        metavar="size=X|bits=X|drop=X|latency=X",
        help="Choose a width, 2 to 8, for each layer's weights: size=0.2 of float, codes counted as packed; bits=4.5 on average; "
        "or drop=0.5, the smallest model that loses no more points, dB or percent before training. Or the layers that stay in "
        "float: latency=0.7, those that lose most and leave the model so fast, of float's time in the runtime on this machine.",
        show_default=False,
    ),
]
For = Annotated[
    Literal["latency"] | None,
    Option(
        "--for",
        help="latency: time layers in the runtime on this machine, on the first batch of the data, and leave in float what is "
        "slower in integers. Takes minutes; --write-config keeps the choice.",
        show_default=False,
    ),
]
WriteConfig = Annotated[
    Path | None,
    Option(
        help="Write the settings that were chosen to this file, to edit and to give to --config.", show_default=False
    ),
]
FixInput = Annotated[
    list[str] | None,
    Option(
        "--fix-input",
        metavar="NAME=VALUE",
        help="Make an input a constant (a number, true, false or a JSON list), or a free size of the inputs that of the deployed "
        "model (batch=1).",
    ),
]
Interpreter = Annotated[
    str | None, Option(help="Python of another environment that has the runtime.", show_default=False)
]
SampleAxis = Annotated[
    int | None, Option(help="Axis of the first input that counts samples, if the model does not show it.")
]


@dataclass(frozen=True)
class Quantization:
    """Settings of quantization: which values, and how."""

    config: Annotated[
        Path | None, Option("--config", help="JSON or YAML file of onnxqat.Config, or one of NNCF.", show_default=False)
    ] = None
    preset: Annotated[
        str | None,
        Option(
            metavar="int8|int8-mixed|w4a8|w4a4|w2a2",
            help="Settings that go together for a width (see `onnxqat presets`); other options take precedence.",
            show_default=False,
        ),
    ] = None
    target: Annotated[
        str | None,
        Option(
            metavar="|".join(TARGETS), help="Runtime to place quantizers for. (default: ort-cpu)", show_default=False
        ),
    ] = None
    weight_bits: Annotated[int | None, Option(help="Width of weights, 2 to 8. (default: 8)", show_default=False)] = None
    weight_block_size: Annotated[
        int | None,
        Option(
            metavar="0|16|32|64|128",
            help="Weights of MatMul and Gemm that share a scale, with 4 bits and float activations; 0: a scale per channel. "
            "(default: 0)",
            show_default=False,
        ),
    ] = None
    embedding_bits: Annotated[
        int | None,
        Option(
            metavar="4|8",
            help="Width of tables of embeddings, a scale for each row. (default: they stay float)",
            show_default=False,
        ),
    ] = None
    activation_bits: Annotated[
        int | None,
        Option(
            help="Width of the inputs of weighted layers, 2 to 8, or 16 of all values. (default: 8)", show_default=False
        ),
    ] = None
    weight_type: Annotated[
        str | None,
        Option(
            metavar="int|fp8",
            help="Codes of weights: integers, or numbers of E4M3 on tensorrt, those of activations too. (default: int)",
            show_default=False,
        ),
    ] = None
    activation_type: Annotated[
        str | None, Option(metavar="int|fp8", help="Codes of activations. (default: int)", show_default=False)
    ] = None
    sixteen: Annotated[
        str | None,
        Option(
            metavar="auto",
            help="16 bits for the activations that lose most with 8, where the target runs them. (default: none)",
            show_default=False,
        ),
    ] = None
    quantize_activations: Annotated[
        bool | None,
        Option(
            "--quantize-activations/--float-activations",
            help="Whether activations are quantized, or weights alone. (default: both)",
            show_default=False,
        ),
    ] = None
    fix_input: FixInput = None


@dataclass(frozen=True)
class Labels:
    """Settings about labels, which belong to the model's first output."""

    class_axis: Annotated[
        int | None, Option(help="Class axis of the first output, if neither the model nor the labels show it.")
    ] = None
    ignore_label: Annotated[int | None, Option(help="Label to ignore, such as -100 or 255.")] = None
    sample_axis: SampleAxis = None


@dataclass(frozen=True)
class Judging:
    """Runtime and environment in which models are judged."""

    runtime: Annotated[
        RuntimeName | None,
        Option(help="Runtime that executes the models. (default: the target's)", show_default=False),
    ] = None
    interpreter: Interpreter = None


@dataclass(frozen=True)
class Learning:
    """Settings of training that its graphs depend on."""

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
