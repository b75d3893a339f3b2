"""The commands: the arguments of each, and the stage that it calls."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxqat import __version__
from onnxqat.cli import options
from onnxqat.cli.groups import grouped
from onnxqat.graph import files
from onnxqat.launch import launched, rank
from onnxqat.terminal import PlainFormatter, Terminal

if TYPE_CHECKING:
    import onnx

    from onnxqat.callbacks import Callback
    from onnxqat.data.labels import Labelling
    from onnxqat.request import Training

#: The option --help of a group has a value where it is not given, for which typer then loads no pydantic.
HELP = {"default_map": {"help": False}}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Quantization-aware training on the ONNX graph itself: insert, train, fold, verify; or all of it with run.",
)
export = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Export a float model to ONNX from the framework it was trained in.",
)
app.add_typer(export, name="export")

console = Terminal()


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
    console.stderr = False
    logger = logging.getLogger("onnxqat")
    level = logging.INFO if rank() == 0 else logging.ERROR  # of several processes, the first alone talks
    logger.setLevel(logging.DEBUG if debug else level)
    # libraries may have set up the root logger, at their own level, when they were imported
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger.handlers = [handler]
    for noisy in ("onnxscript", "onnx_ir", "tf2onnx", "tensorflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


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
) -> None:
    """Export a PyTorch module, checked against its own outputs."""
    _check([output])
    from onnxqat.export import torch as exporter

    samples = tuple(exporter.random_sample(text) for text in sample)
    exporter.export(exporter.load_factory(factory), samples, output, opset=opset)
    console.print(f"wrote {output}")


@export.command("keras")
def export_keras(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=".keras file, SavedModel folder, or package.module:function.")
    ],
    output: options.Output,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 17,
) -> None:
    """Export a Keras model, checked against its own outputs."""
    _check([output], inputs=[model])
    from onnxqat.export import keras as exporter

    exporter.export(exporter.load(model), output, opset=opset)
    console.print(f"wrote {output}")


@app.command()
@grouped
def insert(
    model: options.Model,
    calibration: options.Data,
    output: options.Output,
    quantization: options.Quantization,
    batch_size: options.BatchSize = 64,
    sample_axis: options.SampleAxis = None,
) -> None:
    """Insert quantizers into a float model: post-training quantization, ready to train."""
    _check([output], inputs=[calibration, quantization.config], models=[model])
    from onnxqat.data import sources
    from onnxqat.insertion import insert as stage
    from onnxqat.request import configuration

    config, source = configuration(**asdict(quantization)), sources.read(calibration, batch_size)
    _write(stage(model, source, config, sample_axis=sample_axis, distributed=launched()), output)


@app.command()
@grouped
def train(
    model: options.Model,
    data: options.Data,
    output: options.Output,
    *,
    validation: options.ValidationData = None,
    batch_size: options.BatchSize = 64,
    training: options.TrainingOptions,
    labels: options.Labels,
) -> None:
    """Train weights, biases and scales of a Q/DQ model; the best epoch is kept where there is validation data."""
    _check([output], lines=training.log_file, inputs=[data, validation], models=[model, training.teacher])
    from onnxqat import pipeline, recovery
    from onnxqat.request import Data

    recovery.check_resume(training.checkpoint, resume=training.resume)
    pipeline.train(
        model,
        Data(data, None, validation, None, batch_size),
        _training(training, _labelling(labels)),
        keep=lambda trained: _write(trained, output),
        callbacks=_callbacks(training),
        resume=training.checkpoint if training.resume else None,
        recovery=recovery.of_call(sys.argv[1:], training.checkpoint, output),
    )


@app.command()
def fold(model: options.Model, output: options.Output) -> None:
    """Fold a Q/DQ model into the deployed one: integer weights, int32 biases."""
    _check([output], models=[model])
    from onnxqat.folding import fold as stage

    _write(stage(model), output)


@app.command("eval")
@grouped
def evaluate(
    model: options.Model,
    data: options.Data,
    *,
    metric: options.MetricName = "accuracy",
    labels: options.Labels,
    execution: options.Execution,
    batch_size: options.BatchSize = 64,
) -> None:
    """Print the metric of a model on labelled data."""
    _check(models=[model])
    from onnxqat.data import sources
    from onnxqat.request import Judge

    judge = Judge(execution.runtime, execution.interpreter, metric, _labelling(labels))
    console.print(f"{metric} {judge.score(model, sources.read(data, batch_size)):.4f}")


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
    execution: options.Execution,
    batch_size: options.BatchSize = 64,
    json: options.Json = None,
) -> None:
    """Compare a trained and its deployed model in a real runtime: answers, kernels, size, time."""
    _check(json=json, inputs=[data], models=[trained, deployed, float_model])
    from onnxqat.data import sources
    from onnxqat.pipeline import conclude
    from onnxqat.request import Judge

    judge = Judge(execution.runtime, execution.interpreter, metric, _labelling(labels), max_drop)
    report = judge.compare((trained, deployed), float_model, sources.read(data, batch_size))
    if json is not None:
        files.write_text(report.to_json(), json, files.JSON)
    console.print(report)
    conclude(report)


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
    quantization: options.Quantization,
    training: options.TrainingOptions,
    labels: options.Labels,
    metric: options.MetricOfLoss = None,
    max_drop: options.MaxDrop = None,
    execution: options.Execution,
    json: options.Json = None,
) -> None:
    """Run all stages: insert, train, fold, verify.

    Scores the float model first, calibrates on --calibration (or the first 1,024 samples of --data), keeps the epoch that is best
    on --validation, and reports on --test (or --validation, or --data). At 8 bits --max-drop is 1 point of accuracy, 0.3 dB, or
    5 % of a loss unless given, and 1 % of other answers without labels; with fewer bits, more is a warning.
    """
    read = [data, calibration, validation, test, quantization.config]
    _check([output], json=json, lines=training.log_file, inputs=read, models=[model, training.teacher])
    from onnxqat import pipeline, recovery
    from onnxqat.request import Data, Judge, configuration

    recovery.check_resume(training.checkpoint, resume=training.resume)
    labelling = _labelling(labels)
    settings = _training(training, labelling)
    outcome = pipeline.run(
        model,
        Data(data, calibration, validation, test, batch_size),
        configuration(**asdict(quantization)),
        settings,
        Judge(execution.runtime, execution.interpreter, metric or settings.metric, labelling, max_drop),
        keep=lambda deployed: _write(deployed, output),
        callbacks=_callbacks(training),
        resume=training.checkpoint if training.resume else None,
        recovery=recovery.of_call(sys.argv[1:], training.checkpoint, output),
    )
    if outcome is None:
        return
    if json is not None:
        files.write_text(outcome.to_json(), json, files.JSON)
    console.print(outcome.report)
    console.print(pipeline.summary(outcome))
    pipeline.conclude(outcome.report)


@app.command()
def inspect(
    model: options.Model,
    trainable: Annotated[
        bool, typer.Option(help="Show instead which operators gradients pass, and which not.")
    ] = False,
) -> None:
    """Show what is quantized and how, and what stays in float and why."""
    _check(models=[model])
    from onnxqat import inspection
    from onnxqat.graph import io
    from onnxqat.runtime import check_loads

    loaded = io.load(model, oldest_opset=7)
    if not trainable:
        console.print(inspection.quantization_table(loaded))
        return
    console.print(inspection.trainability_table(loaded))
    console.print(inspection.obstacles_line(loaded), soft_wrap=True)
    check_loads(loaded)


def _check(
    written: Sequence[Path] = (),
    *,
    json: Path | None = None,
    lines: Path | None = None,
    inputs: Sequence[str | Path | None] = (),
    models: Sequence[Path | None] = (),
) -> None:
    """Checks what is read and written before anything large is loaded; where standard output gets a file, messages go elsewhere.

    Args:
        written: models to write.
        json: a report to write.
        lines: a log to write.
        inputs: paths that are read, besides models.
        models: models that are read.
    """
    for model in filter(None, models):
        files.check_present(model)
    from onnxqat.graph import io

    outputs = [*((path, io.MODEL) for path in written), (json, files.JSON), (lines, files.JSON_LINES)]
    console.stderr = any(path is not None and files.is_standard_output(path) for path, _ in outputs)
    if rank() == 0:
        files.check_all(outputs, [*models, *inputs])


def _write(model: onnx.ModelProto, path: Path) -> None:
    from onnxqat.recovery import save

    if rank() == 0:
        save(model, path)
        console.print(f"wrote {path}")


def _labelling(labels: options.Labels) -> Labelling:
    from onnxqat.data.labels import Labelling

    return Labelling(**asdict(labels))


def _training(given: options.TrainingOptions, labelling: Labelling) -> Training:
    from onnxqat.request import Training

    return Training(
        loss=tuple(given.loss),
        epochs=given.epochs,
        steps=given.steps,
        lr=given.lr,
        optimizer_name=given.optimizer,
        weight_decay=given.weight_decay,
        clip_norm=given.clip_norm,
        accumulate=given.accumulate,
        seed=given.seed,
        freeze=tuple(given.freeze or ()),
        teacher=None if given.teacher is None else str(given.teacher),
        threads=given.threads,
        distributed=launched(),
        labelling=labelling,
    )


def _callbacks(given: options.TrainingOptions) -> list[Callback]:
    from onnxqat.callbacks import from_options

    return from_options(given.log_file, given.tensorboard, given.patience, given.checkpoint, given.checkpoint_every)
