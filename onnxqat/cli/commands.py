"""The commands that make models: the arguments of each, and the stage that it calls."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onnxqat import __version__
from onnxqat.cli import asked, options, outputs
from onnxqat.cli.export import export
from onnxqat.cli.groups import grouped
from onnxqat.cli.reading import Reading, form
from onnxqat.names import WeightForm
from onnxqat.process.launch import launched, rank
from onnxqat.terminal.plain import log_plainly

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=options.HELP,
    help="Quantization-aware training on the ONNX graph itself: insert, train, fold, verify; or all of it with run.",
)
app.add_typer(export)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"onnxqat {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback on errors, and more of what happens.")
    ] = False,
) -> None:
    """Sets up logging; `main` takes --debug from anywhere in the call."""
    outputs.console.stderr = False
    level = logging.INFO if rank() == 0 else logging.ERROR  # of several processes, only the first talks
    log_plainly(logging.DEBUG if debug else level)


@app.command()
@grouped
def insert(
    model: options.Model,
    calibration: options.Data,
    output: options.Output,
    quantization: options.Quantization,
    reading: Reading,
    batch_size: options.BatchSize = 64,
    sample_axis: options.SampleAxis = None,
    reconstruct: options.Reconstruct = None,
    dry_run: options.DryRun = False,
    budget: options.Budget = None,
    wanted_for: options.For = None,
    interpreter: options.Interpreter = None,
    write_config: options.WriteConfig = None,
) -> None:
    """Insert quantizers into a float model: post-training quantization, ready to train.

    Where anything has fewer than 8 bits, the data is read a second time, and layers' outputs get back the mean and the deviation
    that they have in float (output_correction in --config).
    """
    outputs.check([output], settings=write_config, inputs=[calibration, quantization.config], models=[model])
    from onnxqat.data import sources
    from onnxqat.insertion import insert as stage
    from onnxqat.insertion.preparation.fixed import with_fixed_inputs

    source = sources.read(calibration, batch_size, form(reading))
    config, judging = asked.configuration(quantization), options.Judging(interpreter=interpreter)
    config = asked.budgeted(config, budget, quantization.preset, model, source, "accuracy", judging)
    config = asked.quickened(config, wanted_for, model, source, judging)
    if dry_run:
        asked.show_plan(model, source, config, sample_axis)
        return
    outputs.write_config(config, write_config)
    qdq = stage(model, source, config, sample_axis=sample_axis, distributed=launched())
    if asked.reconstructs(reconstruct, quantization):
        from onnxqat.search.reconstruct import reconstruct as search

        qdq = search(qdq, with_fixed_inputs(model, config.fixed_inputs), source)
    outputs.write(qdq, output)


@app.command()
@grouped
def reconstruct(
    model: options.Model,
    float_model: Annotated[
        Path, typer.Option("--float", help="Float model that insert was given.", show_default=False)
    ],
    data: options.Data,
    output: options.Output,
    *,
    steps: Annotated[int, typer.Option(help="Optimizer steps for each block.")] = 100,
    lr: Annotated[float, typer.Option(help="Largest learning rate, relative to the size of the parameters.")] = 5e-3,
    samples: Annotated[int, typer.Option(help="Samples to read, 256 to 1,024; labels are not needed.")] = 512,
    batch_size: options.BatchSize = 64,
    reading: Reading,
    seed: Annotated[int, typer.Option(help="Seed of the data's order.")] = 0,
    fix_input: options.FixInput = None,
    execution: options.Execution,
) -> None:
    """Bring a Q/DQ model closer to the float model, block by block, without labels; train can go on from it."""
    outputs.check([output], inputs=[data], models=[model, float_model])
    from onnxqat.data import sources
    from onnxqat.insertion.preparation.fixed import with_fixed_inputs
    from onnxqat.pipeline.request import fixed_inputs
    from onnxqat.search.reconstruct import reconstruct as search

    source = sources.read(data, batch_size, form(reading))
    original = with_fixed_inputs(float_model, fixed_inputs(fix_input))
    found = search(model, original, source, steps=steps, lr=lr, samples=samples, seed=seed, **asdict(execution))
    outputs.write(found, output)


@app.command()
@grouped
def train(
    model: options.Model,
    data: options.Data,
    output: options.Output,
    *,
    validation: options.ValidationData = None,
    batch_size: options.BatchSize = 64,
    reading: Reading,
    training: options.Training,
    execution: options.Execution,
    keeping: options.Keeping,
    labels: options.Labels,
    metric: options.MetricOfEpochs = None,
    report: options.Report = None,
) -> None:
    """Train weights, biases and scales of a Q/DQ model; the best epoch is kept where there is validation data."""
    read = [data, validation]
    outputs.check([output], page=report, lines=keeping.log_file, inputs=read, models=[model, training.teacher])
    from onnxqat import pipeline
    from onnxqat.pipeline.request import Data

    files, settings = (
        Data(data, None, validation, None, batch_size, form(reading)),
        asked.training(training, execution, labels, metric),
    )
    kept, history = asked.followed(asked.keeping(keeping, output), report)
    trained = pipeline.train(model, files, settings, kept)
    if report is not None and rank() == 0:
        from onnxqat.pipeline import pages

        outputs.write_page(pages.of_training(model, trained, files, settings, history), report)


@app.command("export-training")
@grouped
def export_training(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.", show_default=False)],
    learning: options.Learning,
    labels: options.Labels,
) -> None:
    """Write the training of a Q/DQ model as files that any ONNX Runtime runs, in any language."""
    outputs.check(models=[model])
    from onnxqat.training.portable.export import export_training as stage

    settings = asked.learning(learning, labels)
    stage(
        model,
        output,
        loss=settings.loss,
        optimizer=settings.built_optimizer(),
        freeze=settings.freeze,
        labelling=settings.labelling,
    )
    outputs.console.print(f"wrote {output}")


@app.command()
def fold(
    model: options.Model,
    output: options.Output,
    *,
    weights: Annotated[
        WeightForm, typer.Option(help="Store weights as integers, or as floats with a pair behind them (TensorRT 8).")
    ] = "int8",
    float16: Annotated[
        bool, typer.Option("--float16", help="Make what stays float, and all scales, float16 (TensorRT 10 and 11).")
    ] = False,
    qnn_context: Annotated[
        str | None,
        typer.Option(
            metavar="SOC/ARCH",
            help="Also compile the model for that NPU, 60/75 for a Snapdragon 8 Gen 3, into a file beside it (.qnn.onnx).",
            show_default=False,
        ),
    ] = None,
    interpreter: options.Interpreter = None,
) -> None:
    """Fold a Q/DQ model into the deployed one: integer weights, int32 biases."""
    beside = [] if qnn_context is None else [output.with_suffix(".qnn.onnx")]
    outputs.check([output, *beside], models=[model])
    from onnxqat.folding import fold as stage

    deployed = stage(model, weights=weights, float16=float16)
    outputs.write(deployed, output)
    if qnn_context is not None:
        from onnxqat.verification.context import compiled

        outputs.write(compiled(deployed, qnn_context, interpreter), beside[0])


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
    reading: Reading,
) -> None:
    """Print the metric of a model on labelled data."""
    outputs.check(models=[model])
    from onnxqat.data import sources

    judge = asked.judge(judging, metric, labels)
    outputs.console.print(f"{metric} {judge.score(model, sources.read(data, batch_size, form(reading))):.4f}")


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
    reading: Reading,
    json: options.Json = None,
    report: options.Report = None,
) -> None:
    """Compare a trained and its deployed model in a real runtime: answers, kernels, size, time."""
    outputs.check(json=json, page=report, inputs=[data], models=[trained, deployed, float_model])
    from onnxqat.data import sources
    from onnxqat.pipeline import conclude

    judge, source = asked.judge(judging, metric, labels, max_drop), sources.read(data, batch_size, form(reading))
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
    reading: Reading,
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
    from onnxqat.pipeline.raising import path_table
    from onnxqat.pipeline.request import Data

    settings = asked.training(training, execution, labels, metric, quantization.preset)
    files = Data(data, calibration, validation, test, batch_size, form(reading))
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
        page = outcome.report.to_html(history, layers)
        if save_dir is not None:
            saving.save(outcome, saving.Kept(settings, files, history, layers), page, save_dir)
            outputs.console.print(f"wrote {save_dir}")
        if report is not None:
            outputs.write_page(page, report)
    outputs.console.print(outcome.report)
    outputs.console.print(pipeline.summary(outcome))
    if outcome.path:
        outputs.console.print(path_table(outcome))
    pipeline.conclude(outcome.report)
