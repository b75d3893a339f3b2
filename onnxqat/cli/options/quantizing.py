"""Options of quantization: which values, how, and who chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from typer import Option

from onnxqat.names import TARGETS

FixInput = Annotated[
    list[str] | None,
    Option(
        "--fix-input",
        metavar="NAME=VALUE",
        help="Make an input a constant (a number, true, false or a JSON list), or a free size of the inputs that of the deployed "
        "model (batch=1).",
    ),
]
Reconstruct = Annotated[
    bool | None,
    Option(
        "--reconstruct/--no-reconstruct",
        help="Then bring each block closer to the float model, without labels, as the command reconstruct does.",
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
Budget = Annotated[
    str | None,
    Option(
        metavar="size=X|bits=X|drop=X|latency=X",
        help="Choose a width, 2 to 8, for each layer's weights: size=0.2 of float, codes counted as packed; bits=4.5 on average; "
        "or drop=0.5, the smallest model that loses no more points, dB or percent before training. Or the layers that stay in "
        "float: latency=0.7, those that lose most and leave the model so fast, of float's time in the runtime on this machine. "
        "Activations keep the width of the settings; those that only a layer in float reads are in float too.",
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
RaisePrecision = Annotated[
    bool,
    Option(
        "--raise-precision",
        help="Raise precision step by step until no more than --max-drop is lost on --validation (or --test, or --data): other "
        "range estimators, corrected outputs, the costliest layers in float, and training only if that is not enough.",
    ),
]


@dataclass(frozen=True)
class Quantization:
    """Settings of quantization: which values, and how."""

    TITLE: ClassVar[str] = "Quantization"

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
