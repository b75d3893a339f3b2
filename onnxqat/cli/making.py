"""The commands that make models: the arguments of each, and the stage that it calls."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onnxqat.cli import asked, options, outputs
from onnxqat.cli.app import app
from onnxqat.cli.groups import grouped
from onnxqat.names import WeightForm
from onnxqat.process.launch import launched, rank


@app.command()
@grouped
def insert(
    model: options.Model,
    calibration: options.RangesData,
    output: options.Output,
    quantization: options.Quantization,
    reading: options.Reading,
    batch_size: options.BatchSize = 64,
    sample_axis: options.SampleAxis = None,
    reconstruct: options.Reconstruct = None,
    dry_run: options.DryRun = False,
    budget: options.Budget = None,
    wanted_for: options.For = None,
    interpreter: options.Interpreter = None,
    write_config: options.WriteConfig = None,
) -> None:
    """Insert quantizers into a float model.

    That is post-training quantization, ready to train. Where anything has fewer than 8 bits, the data is read a second time, and
    layers' outputs get back the mean and the deviation that they have in float (output_correction in --config).
    """
    outputs.check([output], settings=write_config, inputs=[calibration, quantization.config], models=[model])
    from onnxqat.data import sources
    from onnxqat.insertion import insert as stage
    from onnxqat.insertion.preparation.fixed import with_fixed_inputs

    source = sources.read(calibration, batch_size, options.form(reading))
    config, judging = asked.configuration(quantization), options.Judging(interpreter=interpreter)
    config = asked.budgeted(config, budget, quantization.preset, model, source, "accuracy", judging)
    config = asked.quickened(config, wanted_for, model, source, judging)
    if dry_run:
        asked.show_plan(model, source, config, sample_axis)
        return
    outputs.write_config(config, write_config)
    qdq = stage(model, source, config, sample_axis=sample_axis, distributed=launched())
    if asked.reconstructs(reconstruct, quantization):
        from onnxqat.search.reconstruction.reconstruct import reconstruct as search

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
    finish: Annotated[int, typer.Option(help="Steps for the whole network, after the blocks; 0: none.")] = 100,
    lr: Annotated[float, typer.Option(help="Largest learning rate, relative to the size of the parameters.")] = 5e-3,
    samples: Annotated[int, typer.Option(help="Samples to read, 256 to 1,024; labels are not needed.")] = 512,
    batch_size: options.BatchSize = 64,
    reading: options.Reading,
    seed: Annotated[int, typer.Option(help="Seed of the data's order.")] = 0,
    fix_input: options.FixInput = None,
    execution: options.Execution,
) -> None:
    """Bring a Q/DQ model closer to the float model.

    It works block by block, without labels, and train can go on from its result.
    """
    outputs.check([output], inputs=[data], models=[model, float_model])
    from onnxqat.data import sources
    from onnxqat.insertion.preparation.fixed import with_fixed_inputs
    from onnxqat.pipeline.request import fixed_inputs
    from onnxqat.search.reconstruction.reconstruct import reconstruct as search

    source = sources.read(data, batch_size, options.form(reading))
    original = with_fixed_inputs(float_model, fixed_inputs(fix_input))
    found = search(
        model, original, source, steps=steps, finish=finish, lr=lr, samples=samples, seed=seed, **asdict(execution)
    )
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
    reading: options.Reading,
    training: options.Training,
    execution: options.Execution,
    keeping: options.Keeping,
    labels: options.Labels,
    metric: options.MetricOfEpochs = None,
    report: options.Report = None,
) -> None:
    """Train weights, biases and scales of a Q/DQ model.

    The best epoch is kept where there is validation data.
    """
    read = [data, validation]
    outputs.check([output], page=report, lines=keeping.log_file, inputs=read, models=[model, training.teacher])
    from onnxqat import pipeline
    from onnxqat.pipeline.request import Data

    files, settings = (
        Data(data, None, validation, None, batch_size, options.form(reading)),
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
    """Write the training of a Q/DQ model as files.

    Any ONNX Runtime runs them, in any language.
    """
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
    """Fold a Q/DQ model into the deployed one.

    Its weights are integers, its biases int32.
    """
    beside = [] if qnn_context is None else [output.with_suffix(".qnn.onnx")]
    outputs.check([output, *beside], models=[model])
    from onnxqat.folding import fold as stage

    deployed = stage(model, weights=weights, float16=float16)
    outputs.write(deployed, output)
    if qnn_context is not None:
        from onnxqat.verification.context import compiled

        outputs.write(compiled(deployed, qnn_context, interpreter), beside[0])
