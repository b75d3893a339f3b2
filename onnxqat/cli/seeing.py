"""The commands that measure and choose: what quantization costs where, and what to spare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxqat.cli import asked, options, outputs
from onnxqat.cli.commands import app
from onnxqat.cli.groups import grouped
from onnxqat.cli.reading import Reading, form

Widths = Annotated[
    list[int] | None,
    typer.Option("--width", help="Width to measure, 2 to 8; may be given several times. (default: 8, 4 and 2)"),
]


@app.command()
@grouped
def sensitivity(
    model: options.Model,
    data: options.Data,
    *,
    calibration: options.CalibrationData = None,
    width: Widths = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric to measure beside signal over noise; needs labels.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples to measure on.")] = 64,
    quantization: options.Quantization,
    batch_size: options.BatchSize = 64,
    reading: Reading,
    least: Annotated[
        float,
        typer.Option(metavar="DB", help="For --write-config: signal over noise that each value alone must leave."),
    ] = 20.0,
    write_config: Annotated[
        Path | None,
        typer.Option(help="Write a configuration that gives what costs too much more bits, or leaves it in float."),
    ] = None,
    json: options.Json = None,
    report: options.Report = None,
) -> None:
    """Rank what each weight and activation alone costs when it is quantized; labels are not needed.

    Each is quantized alone, at each width, all else in float, and judged by the model's first output.
    """
    read = [data, calibration, quantization.config]
    outputs.check(json=json, page=report, settings=write_config, inputs=read, models=[model])
    from onnxqat.data import sources
    from onnxqat.search.sensitivity.trials import sensitivity as measured

    def source(name: str | None) -> sources.Source | None:
        return None if name is None else sources.read(name, batch_size, form(reading))

    found = measured(
        model,
        sources.read(data, batch_size, form(reading)),
        asked.configuration(quantization),
        widths=width or (8, 4, 2),
        metric=metric,
        samples=samples,
        calibration=source(calibration),
    )
    outputs.write_report(found, json)
    if write_config is not None:
        outputs.write_config(found.sparing(least), write_config)
    if report is not None:
        outputs.write_page(found.to_html(), report)
    outputs.console.print(found)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that run --save-dir wrote.", show_default=False)],
    json: options.Json = None,
    report: options.Report = None,
) -> None:
    """Show several runs side by side: scores, size, time, and the settings in which they differ."""
    outputs.check(json=json, page=report)
    from onnxqat.pipeline.comparison import Comparison

    found = Comparison.of(runs)
    outputs.write_report(found, json)
    if report is not None:
        outputs.write_page(found.to_html(), report)
    outputs.console.print(found)
