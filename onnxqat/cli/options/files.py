"""Files that commands read and write, and how data in files becomes inputs of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typer import Argument, Option

from onnxqat.errors import InputError

if TYPE_CHECKING:
    from onnxqat.data.paths import Form

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
RangesData = Annotated[str, Option("--calibration", "--data", help=DATA_HELP, show_default=False)]
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
SaveDir = Annotated[
    Path | None,
    Option(
        metavar="DIR",
        help="Also keep every stage's model, the effective settings, all figures and the page in this folder, for compare.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Reading:
    """Settings of how files are read."""

    TITLE: ClassVar[str] = "Reading of data"

    map: Annotated[
        list[str],
        Option(
            metavar="INPUT=NAME",
            help="Array or column that an input (or label) is read from; of several columns, x=a,b,c.",
            show_default=False,
        ),
    ] = field(default_factory=list)
    image_preset: Annotated[
        str | None,
        Option(
            metavar="imagenet|inception|caffe|clip|unit|bytes",
            help="How the images of a folder are scaled: as for networks of that family, or 0 to 1, or 0 to 255.",
            show_default=False,
        ),
    ] = None
    image_size: Annotated[
        str | None,
        Option(metavar="N|HxW", help="Size of images. (default: that of the model's input)", show_default=False),
    ] = None
    image_mean: Annotated[
        str | None,
        Option(
            metavar="M[,M,M]",
            help="Mean of each channel of pixels from 0 to 1, instead of a preset.",
            show_default=False,
        ),
    ] = None
    image_std: Annotated[
        str | None, Option(metavar="S[,S,S]", help="Deviation of each channel likewise.", show_default=False)
    ] = None
    image_layout: Annotated[
        str | None,
        Option(metavar="nchw|nhwc", help="Order of axes. (default: as the model's input shows it)", show_default=False),
    ] = None
    image_crop: Annotated[
        float | None,
        Option(help="Share of the resized image that is kept. (default: the preset's, or 1)", show_default=False),
    ] = None
    classes: Annotated[
        Path | None,
        Option(
            help="Text file of the classes of images, in order. (default: the names of the folders, sorted)",
            show_default=False,
        ),
    ] = None


def form(given: Reading) -> Form:
    """Reading of files, by the options."""
    from onnxqat.data.columns import Columns, parsed
    from onnxqat.data.paths import Form
    from onnxqat.data.pixels import Pixels

    layout: Any = given.image_layout
    if layout not in (None, "nchw", "nhwc"):
        raise InputError(f"--image-layout {layout}: is not known; use nchw or nhwc")
    size = None if given.image_size is None else _numbers("--image-size", given.image_size.replace("x", ","), int)
    if size is not None and len(size) > 2:
        raise InputError(f"--image-size {given.image_size}: is not N or HxW; fix it")
    pixels = Pixels(
        given.image_preset,
        None if size is None else (size[0], size[-1]),
        None if given.image_mean is None else _numbers("--image-mean", given.image_mean, float),
        None if given.image_std is None else _numbers("--image-std", given.image_std, float),
        layout,
        given.image_crop,
    )
    return Form(Columns(parsed(given.map)), pixels, given.classes)


def _numbers(option: str, text: str, kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: is not a list of numbers; write them with commas between") from None
