"""The command line: arguments in, files out. What it does is in the stages; see `pipeline` for their order."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from json import JSONDecodeError, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from onnxqat import __version__, interruption
from onnxqat.errors import InputError, LostProcessError, OnnxqatError
from onnxqat.foreign import described, is_own_exit
from onnxqat.graph import files
from onnxqat.interruption import Interrupted, Raiser
from onnxqat.launch import give_way, in_words, launched, rank
from onnxqat.names import RuntimeName, TargetName
from onnxqat.terminal import PlainFormatter, Terminal, close_streams, open_streams, plain

if TYPE_CHECKING:
    import onnx

    from onnxqat.config import Config
    from onnxqat.recovery import Recovery

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantization-aware training on the ONNX graph itself: insert, train, fold, verify; or all of it with run.",
)
export = typer.Typer(no_args_is_help=True, help="Export a float model to ONNX from the framework it was trained in.")
app.add_typer(export, name="export")

console = Terminal()

Model = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", help="File to write, whole or not at all; - for standard output.", show_default=False
    ),
]
DATA_HELP = (
    "An .npz file with arrays named as the model's inputs (and label), a folder of them, or package.module:function."
)
Data = Annotated[str, typer.Option(help=DATA_HELP, show_default=False)]
CalibrationData = Annotated[
    str | None,
    typer.Option(help="What ranges come from. (default: the first 1,024 samples of --data)", show_default=False),
]
ValidationData = Annotated[
    str | None, typer.Option(help="What each epoch is judged on; the best one is kept.", show_default=False)
]
TestData = Annotated[
    str | None,
    typer.Option(help="What the report is made on. (default: --validation, or else --data)", show_default=False),
]
Runtime = Annotated[
    RuntimeName | None,
    typer.Option(help="Runtime that executes the models. (default: the target's)", show_default=False),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Exit with status 1 where the deployed model is worse than the float one by more: points of accuracy, dB of psnr, "
        "percent of an mse; without labels, percent of other answers.",
        show_default=False,
    ),
]
Interpreter = Annotated[
    str | None, typer.Option(help="Python of another environment that has the runtime.", show_default=False)
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="JSON file of onnxqat.Config, or one of NNCF.", show_default=False)
]
Target = Annotated[
    TargetName | None, typer.Option(help="Runtime to place quantizers for. (default: ort-cpu)", show_default=False)
]
FixInput = Annotated[
    list[str] | None,
    typer.Option(
        "--fix-input", metavar="NAME=VALUE", help="Make an input a constant; a number, true, false or a JSON list."
    ),
]
WeightBits = Annotated[int | None, typer.Option(help="Width of weights, 2 to 8. (default: 8)", show_default=False)]
ActivationBits = Annotated[
    int | None, typer.Option(help="Width of what weighted layers read, 2 to 8. (default: 8)", show_default=False)
]
Losses = Annotated[
    list[str], typer.Option(help="Such as cross_entropy, mse, l1, bce_with_logits or distill; several add up.")
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        help="Model that the loss distill learns from. (default: the model without its quantizers)", show_default=False
    ),
]
Epochs = Annotated[int, typer.Option(help="Passes over the data.")]
Rate = Annotated[float, typer.Option(help="Largest learning rate of AdamW; warm-up, then a cosine to 0.")]
BatchSize = Annotated[
    int, typer.Option(help="Rows per batch, for data in files; 1 for a model that takes one sample at a time.")
]
Seed = Annotated[int, typer.Option(help="Seed of the data's order.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Folder for a checkpoint after each epoch; the two newest are kept.")
]
CheckpointEvery = Annotated[int | None, typer.Option(help="Also write a checkpoint after every so many batches.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Name or pattern of nodes or initializers to leave as they are.")
]

MetricName = Annotated[str, typer.Option(help="accuracy, binary_accuracy, top5, mse or psnr.")]
ClassAxis = Annotated[
    int | None, typer.Option(help="Axis of the first output along which classes compete, where labels leave it open.")
]
IgnoreLabel = Annotated[int | None, typer.Option(help="Label that does not count: -100 or 255, say.")]
SampleAxis = Annotated[
    int | None, typer.Option(help="Axis of the first input that counts samples, where the model leaves it open.")
]
Json = Annotated[
    Path | None, typer.Option(help="Write the report to this file too; - for standard output.", show_default=False)
]


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
    output: Output,
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
    output: Output,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 17,
) -> None:
    """Export a Keras model, checked against its own outputs."""
    _check([output], inputs=[model])
    from onnxqat.export import keras as exporter

    exporter.export(exporter.load(model), output, opset=opset)
    console.print(f"wrote {output}")


@app.command()
def insert(
    model: Model,
    calibration: Data,
    output: Output,
    config: ConfigFile = None,
    target: Target = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    fix_input: FixInput = None,
    batch_size: BatchSize = 64,
    sample_axis: SampleAxis = None,
) -> None:
    """Insert quantizers into a float model: post-training quantization, ready to train."""
    _check([output], inputs=[calibration, config], models=[model])
    from onnxqat.data import sources as datasets
    from onnxqat.insertion import insert as stage

    settings = _config(config, target, weight_bits, activation_bits, fix_input)
    source = datasets.read(calibration, batch_size)
    _write(stage(model, source, settings, sample_axis=sample_axis, distributed=launched()), output)


@app.command()
def train(
    model: Model,
    data: Data,
    output: Output,
    validation: ValidationData = None,
    loss: Losses = ["cross_entropy"],  # noqa: B006  (typer copies it)
    epochs: Epochs = 3,
    lr: Rate = 1e-4,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    freeze: Freeze = None,
    class_axis: ClassAxis = None,
    ignore_label: IgnoreLabel = None,
    sample_axis: SampleAxis = None,
    teacher: Teacher = None,
    log_file: Annotated[Path | None, typer.Option(help="Append a JSON line per step and epoch to this file.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Write event files for TensorBoard to this folder.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without improvement.")] = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
    threads: Annotated[int, typer.Option(help="Threads inside an operator; 0: one for each core.")] = 0,
) -> None:
    """Train weights, biases and scales of a Q/DQ model; the best epoch is kept where there is validation data."""
    _check([output], lines=log_file, inputs=[data, validation], models=[model, teacher])
    _check_resume(checkpoint, resume=resume)
    from onnxqat.callbacks import from_options
    from onnxqat.data import sources as datasets
    from onnxqat.data.labels import Labelling
    from onnxqat.pipeline import Training, trainer
    from onnxqat.recovery import fit

    callbacks = from_options(log_file, tensorboard, patience, checkpoint, checkpoint_every)
    taught = None if teacher is None else str(teacher)
    labelling = Labelling(class_axis, ignore_label, sample_axis)
    settings = Training(tuple(loss), epochs, lr, seed, tuple(freeze or ()), taught, threads, launched(), labelling)
    run = trainer(model, settings)
    if resume and checkpoint is not None:
        run.resume(checkpoint)
    judged = None if validation is None else datasets.read(validation, batch_size)
    source = datasets.read(data, batch_size)
    fit(run, epochs, source, judged, callbacks, lambda trained: _write(trained, output), _recovery(checkpoint, output))


@app.command()
def fold(model: Model, output: Output) -> None:
    """Fold a Q/DQ model into the deployed one: integer weights, int32 biases."""
    _check([output], models=[model])
    from onnxqat.folding import fold as stage

    _write(stage(model), output)


@app.command("eval")
def evaluate(
    model: Model,
    data: Data,
    metric: MetricName = "accuracy",
    class_axis: ClassAxis = None,
    ignore_label: IgnoreLabel = None,
    sample_axis: SampleAxis = None,
    runtime: Runtime = None,
    interpreter: Interpreter = None,
    batch_size: BatchSize = 64,
) -> None:
    """Print the metric of a model on labelled data."""
    _check(models=[model])
    from onnxqat.data import sources as datasets
    from onnxqat.data.labels import Labelling
    from onnxqat.pipeline import Judge

    judge = Judge(runtime, interpreter, metric, Labelling(class_axis, ignore_label, sample_axis))
    console.print(f"{metric} {judge.score(model, datasets.read(data, batch_size)):.4f}")


@app.command()
def verify(
    trained: Model,
    deployed: Annotated[Path, typer.Argument(help="What fold made of it.", show_default=False)],
    data: Data,
    float_model: Annotated[
        Path | None, typer.Option("--float", help="Float model to judge the deployed one against.", show_default=False)
    ] = None,
    max_drop: MaxDrop = None,
    metric: MetricName = "accuracy",
    class_axis: ClassAxis = None,
    ignore_label: IgnoreLabel = None,
    sample_axis: SampleAxis = None,
    runtime: Runtime = None,
    interpreter: Interpreter = None,
    batch_size: BatchSize = 64,
    json: Json = None,
) -> None:
    """Compare a trained and its deployed model in a real runtime: answers, kernels, size, time."""
    _check(json=json, inputs=[data], models=[trained, deployed, float_model])
    from onnxqat.data import sources as datasets
    from onnxqat.data.labels import Labelling
    from onnxqat.pipeline import Judge, conclude

    judge = Judge(runtime, interpreter, metric, Labelling(class_axis, ignore_label, sample_axis), max_drop)
    report = judge.compare((trained, deployed), float_model, datasets.read(data, batch_size))
    if json is not None:
        files.write_text(report.to_json(), json, files.JSON)
    console.print(report)
    conclude(report)


@app.command()
def run(
    model: Model,
    data: Data,
    output: Output,
    calibration: CalibrationData = None,
    validation: ValidationData = None,
    test: TestData = None,
    config: ConfigFile = None,
    target: Target = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    fix_input: FixInput = None,
    loss: Losses = ["cross_entropy"],  # noqa: B006  (typer copies it)
    epochs: Epochs = 3,
    lr: Rate = 1e-4,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, binary_accuracy, top5, mse or psnr. (default: that of the loss)")
    ] = None,
    class_axis: ClassAxis = None,
    ignore_label: IgnoreLabel = None,
    sample_axis: SampleAxis = None,
    teacher: Teacher = None,
    max_drop: MaxDrop = None,
    runtime: Runtime = None,
    interpreter: Interpreter = None,
    json: Json = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = False,
) -> None:
    """Run all stages: insert, train, fold, verify.

    Scores the float model first, calibrates on --calibration (or the first 1,024 samples of --data), keeps the epoch that is best
    on --validation, and reports on --test (or --validation, or --data). At 8 bits --max-drop is 1 point of accuracy, 0.3 dB, or
    5 % of a loss unless given, and 1 % of other answers without labels; with fewer bits, more is a warning.
    """
    _check([output], json=json, inputs=[data, calibration, validation, test, config], models=[model, teacher])
    _check_resume(checkpoint, resume=resume)
    from onnxqat import pipeline
    from onnxqat.callbacks import from_options
    from onnxqat.data.labels import Labelling

    labelling = Labelling(class_axis, ignore_label, sample_axis)
    taught = None if teacher is None else str(teacher)
    training = pipeline.Training(
        tuple(loss), epochs, lr, seed, teacher=taught, distributed=launched(), labelling=labelling
    )
    outcome = pipeline.run(
        model,
        pipeline.Data(data, calibration, validation, test, batch_size),
        _config(config, target, weight_bits, activation_bits, fix_input),
        training,
        pipeline.Judge(runtime, interpreter, metric or training.metric, labelling, max_drop),
        keep=lambda deployed: _write(deployed, output),
        callbacks=from_options(None, None, None, checkpoint, checkpoint_every),
        resume=checkpoint if resume else None,
        recovery=_recovery(checkpoint, output),
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
    model: Model,
    trainable: Annotated[bool, typer.Option(help="Show which operators gradients pass instead.")] = False,
) -> None:
    """Show what is quantized, how, what is not and why."""
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


def main() -> None:
    """Runs the command line.

    Exit status: 0 done; 1 the work failed; 2 the call or an input file is wrong; 130, 143, 129: Ctrl-C, SIGTERM, SIGHUP.
    """
    open_streams()
    try:
        # of several processes, torchrun ends all when one has ended: `distributed` handles that
        with nullcontext() if launched() else interruption.raising() as signals:
            _main(signals)
    except SystemExit as end:
        failure = close_streams()
        if failure is None or end.code:
            raise
        _end(f"standard output: cannot be written ({failure}); free the disk, or read it to its end", 1)


def _main(signals: Raiser | None) -> NoReturn:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = _called(["--debug", *arguments] if debug else arguments, signals)
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted.cause}", file=sys.stderr)
        sys.exit(interrupted.status)
    except typer.Abort:
        sys.exit(130)
    except TyperException as error:  # the call is wrong; without arguments the help has been shown, and says it all
        message = error.format_message().rstrip(".")
        _end(f"{message}; see --help" if message else "", 2)
    except SystemExit as error:
        if debug or is_own_exit(error):
            raise
        _end(f"code of the user's fails ({described(error)}); mend it", 1)
    except Exception as error:
        if debug:
            raise
        _fail(error)
    sys.exit(status)


def _called(arguments: Sequence[str], signals: Raiser | None) -> int:
    """Exit status of the command; typer makes one status of all signals."""
    status = int(app(arguments, standalone_mode=False) or 0)
    if signals is not None and signals.raised is not None and status == signal.SIGINT + 128:
        raise signals.raised
    return status


def _fail(error: Exception) -> NoReturn:
    if rank() > 0 and not isinstance(error, LostProcessError):
        give_way()
    if isinstance(error, OnnxqatError):
        _end(str(error), 2 if isinstance(error, InputError) else 1)
    if isinstance(error, OSError) and error.filename:
        _end(f"{error.filename}: {error.strerror}; check the path", 2)
    _end(f"{described(error)}; run again with --debug for the traceback", 1)


def _check_resume(checkpoint: Path | None, *, resume: bool) -> None:
    from onnxqat.training.resume import checkpoint_files

    if checkpoint is not None and rank() == 0:
        checkpoint_files.check_folder(checkpoint, begun=resume)
    elif resume and checkpoint is None:
        raise InputError("--resume: no folder of checkpoints is given; add --checkpoint DIR")


def _recovery(checkpoint: Path | None, output: Path) -> Recovery | None:
    """Where a run that a signal ends leaves a checkpoint, and the call that goes on from there; of one process alone."""
    from onnxqat.recovery import Recovery

    if launched():
        return None
    beside = None if files.is_stream(output) else output.with_name(f"{output.name}.checkpoints")

    def command(folder: Path) -> str:
        given = [argument for argument in sys.argv[1:] if argument != "--resume"]
        folders = [] if checkpoint is not None else ["--checkpoint", str(folder)]
        return shlex.join(["onnxqat", *given, *folders, "--resume"])

    return Recovery(checkpoint or beside, command)


def _check(
    written: Sequence[Path] = (),
    *,
    json: Path | None = None,
    lines: Path | None = None,
    inputs: Sequence[str | Path | None] = (),
    models: Sequence[Path | None] = (),
) -> None:
    """Checks what is read and written, before anything large is loaded; what is said goes to standard error where one is output.

    Args:
        written: models to write.
        json: a report to write.
        lines: a log to write.
        inputs: what is read besides models.
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


def _end(message: str, status: int) -> NoReturn:
    if message:
        with suppress(OSError):
            print(plain(in_words(" ".join(message.split()))), file=sys.stderr)
    sys.exit(status)


def _config(
    path: Path | None,
    target: TargetName | None,
    weight_bits: int | None,
    activation_bits: int | None,
    fixed: list[str] | None,
) -> Config:
    """The configuration file's settings, those of the command line over them."""
    from onnxqat import nncf
    from onnxqat.config import Config

    given: dict[str, Any] = {"target": target, "weight_bits": weight_bits, "activation_bits": activation_bits}
    if fixed:
        given["fixed_inputs"] = dict(map(_fixed_input, fixed))
    base = Config()
    if path is not None:
        base = Config.from_nncf(path) if nncf.describes(path) else Config.from_json(path)
    return Config(**{**dict(base), **{name: value for name, value in given.items() if value is not None}})


def _fixed_input(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` as a pair."""
    name, _, value = text.rpartition("=")
    try:
        return name, loads(value.lower())
    except JSONDecodeError:
        raise InputError(
            f"--fix-input {text}: is not NAME=VALUE with a number, true, false or a list; mend it"
        ) from None
