"""Options of how models are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from typer import Option

from onnxqat.names import RuntimeName

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
Interpreter = Annotated[
    str | None, Option(help="Python of another environment that has the runtime.", show_default=False)
]
SampleAxis = Annotated[
    int | None, Option(help="Axis of the first input that counts samples, if the model does not show it.")
]


@dataclass(frozen=True)
class Labels:
    """Settings about labels, which belong to the model's first output."""

    TITLE: ClassVar[str] = "Labels"

    class_axis: Annotated[
        int | None, Option(help="Class axis of the first output, if neither the model nor the labels show it.")
    ] = None
    ignore_label: Annotated[int | None, Option(help="Label to ignore, such as -100 or 255.")] = None
    sample_axis: SampleAxis = None


@dataclass(frozen=True)
class Judging:
    """Runtime and environment in which models are judged."""

    TITLE: ClassVar[str] = "Judging"

    runtime: Annotated[
        RuntimeName | None,
        Option(help="Runtime that executes the models. (default: the target's)", show_default=False),
    ] = None
    interpreter: Interpreter = None
