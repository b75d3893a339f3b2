"""The commands that export a model from a framework."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxqat.cli import options, outputs
from onnxqat.cli.groups import Application

export = Application(
    name="export",
    no_args_is_help=True,
    help="Export a float model from its framework.",
)


@export.command("torch")
def export_torch(
    factory: Annotated[str, typer.Argument(metavar="PACKAGE:FACTORY", help="Function that returns the module.")],
    sample: Annotated[
        list[str],
        typer.Option(
            "--input", help="Shape of an input, batch first: 1,3,224,224, or int64:1,16; once for each input."
        ),
    ],
    output: options.Output,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 17,
    exporter: Annotated[
        str, typer.Option(help="torchscript, dynamo, or auto: the first of the two whose model answers as the module.")
    ] = "auto",
) -> None:
    """Export a PyTorch module, checked against its own outputs."""
    outputs.check([output])
    from onnxqat.export import torch as pytorch

    samples = tuple(pytorch.random_sample(text) for text in sample)
    pytorch.export(pytorch.load_factory(factory), samples, output, opset=opset, exporter=pytorch.chosen(exporter))
    outputs.console.print(f"wrote {output}")


@export.command("keras")
def export_keras(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=".keras file, SavedModel folder, or package.module:function.")
    ],
    output: options.Output,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 17,
) -> None:
    """Export a Keras model, checked against its own outputs."""
    outputs.check([output], inputs=[model])
    from onnxqat.export import keras as exporter

    exporter.export(exporter.load(model), output, opset=opset)
    outputs.console.print(f"wrote {output}")
