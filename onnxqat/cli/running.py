"""The commands that run models on data and judge them, and the one that runs all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxqat.cli import asked, options, outputs
from onnxqat.cli.app import app
from onnxqat.cli.groups import grouped


@app.command("eval")
@grouped
def evaluate(
    model: options.Model,
    data: options.Data,
    *,
    metric: options.MetricName = "accuracy",
    labels: options.Labels,
    judging: options.Judging,
    batch_size: options.BatchSize = 64,
    reading: options.Reading,
) -> None:
    """Print the metric of a model on labelled data."""
    outputs.check(models=[model])
    from onnxqat.data import sources

    judge = asked.judge(judging, metric, labels)
    outputs.console.print(f"{metric} {judge.score(model, sources.read(data, batch_size, options.form(reading))):.4f}")


@app.command()
@grouped
def verify(
    trained: options.Model,
    deployed: Annotated[Path, typer.Argument(help="Model that fold made of it.", show_default=False)],
    data: options.Data,
    *,
    float_model: Annotated[
        Path | None, typer.Option("--float", help="Float model to judge the deployed one against.", show_default=False)
    ] = None,
    max_drop: options.MaxDrop = None,
    metric: options.MetricName = "accuracy",
    labels: options.Labels,
    judging: options.Judging,
    batch_size: options.BatchSize = 64,
    reading: options.Reading,
    json: options.Json = None,
    report: options.Report = None,
) -> None:
    """Compare a trained and its deployed model.

    Both run in a real runtime, which shows answers, kernels, size and time.
    """
    outputs.check(json=json, page=report, inputs=[data], models=[trained, deployed, float_model])
    from onnxqat.data import sources
    from onnxqat.pipeline import conclude

    judge, source = (
        asked.judge(judging, metric, labels, max_drop),
        sources.read(data, batch_size, options.form(reading)),
    )
    found = judge.compare((trained, deployed), float_model, source)
    outputs.write_report(found, json)
    if report is not None:
        from onnxqat.pipeline import pages

        outputs.write_page(pages.of_verification(found, (trained, deployed), float_model, source, judge), report)
    outputs.console.print(found)
    conclude(found)


@app.command()
@grouped
def run(
    model: options.Model,
    data: options.Data,
    output: options.Output,
    *,
    calibration: options.CalibrationData = None,
    validation: options.ValidationData = None,
    test: options.TestData = None,
    batch_size: options.BatchSize = 64,
    reading: options.Reading,
    quantization: options.Quantization,
    training: options.Training,
    execution: options.Execution,
    keeping: options.Keeping,
    labels: options.Labels,
    metric: options.MetricOfLoss = None,
    max_drop: options.MaxDrop = None,
    judging: options.Judging,
    reconstruct: options.Reconstruct = None,
    dry_run: options.DryRun = False,
    budget: options.Budget = None,
    wanted_for: options.For = None,
    write_config: options.WriteConfig = None,
    json: options.Json = None,
    report: options.Report = None,
    save_dir: options.SaveDir = None,
    raise_precision: options.RaisePrecision = False,
) -> None:
    """Run all stages: insert, train, fold, verify.

    Scores the float model first, calibrates on --calibration (or the first 1,024 samples of --data), as --reconstruct does too,
    keeps the epoch that is best on --validation, and reports on --test (or --validation, or --data). At 8 bits --max-drop is 1
    point of accuracy, 0.3 dB, or 5 % of a loss unless given, and 1 % of other answers without labels; with fewer bits, more is a
    warning.
    """
    written = {"json": json, "page": report, "settings": write_config, "lines": keeping.log_file}
    read = [data, calibration, validation, test, quantization.config]
    saved = outputs.saved(save_dir)
    outputs.check([output, *saved], **written, inputs=read, models=[model, training.teacher])
    from onnxqat import pipeline
    from onnxqat.pipeline.raising import Way
    from onnxqat.pipeline.request import Data

    settings = asked.training(training, execution, labels, metric, quantization.preset)
    files = Data(data, calibration, validation, test, batch_size, options.form(reading))
    judge = asked.judge(judging, metric, labels, max_drop)
    source, config = files.read(files.validation), asked.configuration(quantization)
    config = asked.budgeted(config, budget, quantization.preset, model, source, judge.metric or "accuracy", judging)
    config = asked.quickened(config, wanted_for, model, source, judging)
    if dry_run:
        asked.show_plan(model, files.read(calibration), config, labels.sample_axis)
        return
    outputs.write_config(config, write_config)
    kept, history = asked.followed(asked.keeping(keeping, output), report, save_dir)
    reconstructed = asked.reconstructs(reconstruct, quantization)
    if raise_precision:
        outcome = asked.raising(reconstructed)(model, files, config, settings, judge, kept)
    else:
        outcome = pipeline.run(model, files, config, settings, judge, kept, reconstructed=reconstructed)
    if outcome is None:
        return
    outputs.write_report(outcome, json)
    if report is not None or save_dir is not None:
        from onnxqat.pipeline import pages, saving

        layers = pages.layers_of_run(outcome, files, judge)
        page = outcome.report.to_html(Way(outcome), history, layers)
        if save_dir is not None:
            saving.save(outcome, saving.Kept(settings, files, history, layers), page, save_dir)
            outputs.console.print(f"wrote {save_dir}")
        if report is not None:
            outputs.write_page(page, report)
    outputs.console.print(outcome.report)
    outputs.console.print(pipeline.summary(outcome, asked.most_time(budget)))
    if outcome.path:
        outputs.console.print(Way(outcome))
    pipeline.conclude(outcome.report)
