"""The commands that look: at models, at what quantization costs where, at runs, at the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxqat.cli import asked, options, outputs
from onnxqat.cli.app import app
from onnxqat.cli.groups import grouped
from onnxqat.names import TARGETS

Widths = Annotated[
    list[int] | None,
    typer.Option("--width", help="Width to measure, 2 to 8; may be given several times. (default: 8, 4 and 2)"),
]


@app.command()
def check(
    model: options.Model,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(TARGETS),
            help="Target to judge by. (default: the one that the model was inserted for)",
            show_default=False,
        ),
    ] = None,
    json: options.Json = None,
) -> None:
    """Say what a target refuses in a Q/DQ model.

    Of any tool's model: what the target's runtime would refuse, split or leave in float, each with its remedy. Exit status 1
    where it would refuse the model.
    """
    outputs.check(json=json, models=[model])
    from onnxqat.checking import check as judge

    findings = judge(model, target)
    outputs.write_report(findings, json)
    outputs.console.print(findings)
    if findings.refused:
        raise typer.Exit(1)


@app.command()
def inspect(
    model: options.Model,
    trainable: Annotated[
        bool, typer.Option(help="Show instead which operators gradients pass, and which not.")
    ] = False,
    json: options.Json = None,
) -> None:
    """Show what is quantized and how, what not and why."""
    outputs.check(json=json, models=[model])
    from onnxqat.cli import inspection
    from onnxqat.graph import io
    from onnxqat.runtime import check_loads

    loaded = io.load(model, oldest_opset=7)
    if not trainable:
        outputs.console.print(inspection.quantization_table(loaded))
        outputs.write_report(inspection.Contents.of(loaded), json)
        return
    outputs.console.print(inspection.trainability_table(loaded))
    outputs.console.print(inspection.obstacles_line(loaded), soft_wrap=True)
    check_loads(loaded)


@app.command()
@grouped
def sensitivity(
    model: options.Model,
    data: options.Data,
    *,
    calibration: Annotated[
        str | None,
        typer.Option(help="Data that ranges come from. (default: the first 256 samples of --data)", show_default=False),
    ] = None,
    width: Widths = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric to measure beside signal over noise; needs labels.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples to measure on.")] = 64,
    quantization: options.Quantization,
    batch_size: options.BatchSize = 64,
    reading: options.Reading,
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
    """Rank what each weight and activation costs.

    Labels are not needed. Each is quantized alone, at each width, all else in float, and judged by the model's outputs.
    What lies behind it runs on --samples samples for each value and width: seconds for small networks, some minutes for one with
    100 values and images of 224 x 224. Fewer samples or widths take less.
    """
    read = [data, calibration, quantization.config]
    outputs.check(json=json, page=report, settings=write_config, inputs=read, models=[model])
    from onnxqat.data import sources
    from onnxqat.search.sensitivity import check_least
    from onnxqat.search.sensitivity.trials import sensitivity as measured

    def source(name: str | None) -> sources.Source | None:
        return None if name is None else sources.read(name, batch_size, options.form(reading))

    check_least(least)
    found = measured(
        model,
        sources.read(data, batch_size, options.form(reading)),
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
    """Show several runs side by side.

    Their scores, size, time, and the settings in which they differ.
    """
    outputs.check(json=json, page=report)
    from onnxqat.pipeline.comparison import Comparison

    found = Comparison.of(runs)
    outputs.write_report(found, json)
    if report is not None:
        outputs.write_page(found.to_html(), report)
    outputs.console.print(found)


@app.command()
def presets() -> None:
    """Show the presets, and where they were found."""
    from onnxqat.pipeline.presets import table

    outputs.console.print(table())


@app.command()
def doctor(json: options.Json = None) -> None:
    """Show what the machine has, and what is missing.

    Exit status 1 where onnxqat cannot work.
    """
    outputs.check([], json=json)
    from onnxqat.cli.doctor import examined

    found = examined()
    outputs.console.print(found.table())
    outputs.write_report(found, json)
    if not found.is_well:
        raise typer.Exit(1)
