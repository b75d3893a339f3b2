"""The verify stage: a trained Q/DQ model and what it was folded into, side by side in a real runtime."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.data import sources
from onnxqat.data.labels import Decisions, Labelling
from onnxqat.data.samples import Samples
from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.graph.sizes import any_samples, fixed_sizes
from onnxqat.graph.types import infer
from onnxqat.graph.without import TARGET, without_quantizers
from onnxqat.metrics.table import Function, named
from onnxqat.names import RuntimeName
from onnxqat.targets import TARGETS
from onnxqat.terminal.progress import track
from onnxqat.verification import compare, fusion, fusion_openvino, fusion_ort, fusion_qnn, fusion_structure, models
from onnxqat.verification.baseline import Baseline
from onnxqat.verification.divergence import Divergence, divergence
from onnxqat.verification.host import PACKAGES, RUNTIME_OF, Arrays, Host, opened
from onnxqat.verification.judge import Evidence, check_judged
from onnxqat.verification.other_processor import Elsewhere
from onnxqat.verification.paired import Paired
from onnxqat.verification.report import ALARMING_STEPS, Latency, Report, Size

log = logging.getLogger(__name__)

_REPORTS = {"ort": fusion_ort.report, "openvino": fusion_openvino.report, "qnn": fusion_qnn.report}
#: Time for which float and deployed model are timed.
TIMING_SECONDS = 4.0


def verify(  # noqa: PLR0913  (the public interface is this flat)
    trained: io.ModelLike,
    deployed: io.ModelLike,
    batches: str | Path | sources.Source | sources.Batches,
    *,
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    metric: str | Function = "accuracy",
    float_model: io.ModelLike | None = None,
    class_axis: int | None = None,
    ignore_label: int | None = None,
    sample_axis: int | None = None,
    max_drop: float | None = None,
    transform: sources.Transform | None = None,
    threads: int = 2,
) -> Report:
    """Runs both models on data and reports metric, agreement, kernels, size and latency.

    The Q/DQ model's quantizers are computed in float, as in training; the deployed model runs as the runtime sees fit.

    Args:
        trained: the Q/DQ model.
        deployed: what `fold` made of it.
        batches: iterable of batches, a path, or `package.module:function`; with labels under "label" for the metric.
        runtime: "ort", "openvino" or "qnn"; None: the one that the deployed model was made for.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        metric: "accuracy", "top5", "binary_accuracy", "f1", "iou", "map", "mse", "psnr", "ssim", "pearson", "perplexity", "wer",
            or a function from (first output, label) to one value per sample.
        float_model: model that size and latency are compared with, and that the deployed model is judged against
            (`Report.verdict`); None: the Q/DQ model without its quantizers, and no verdict.
        class_axis: axis of the first output that holds the classes; None: the model's Softmax or the labels' shape tells it.
        ignore_label: label that is ignored, such as -100 or 255; None: all count.
        sample_axis: axis of the first input that counts samples; None: it follows from the model, and is usually the first.
        max_drop: how much worse than the float model the deployed one may be: points of accuracy, dB, percent of a loss,
            percent of other answers where there are no labels. `Report.verdict.fails` where it is more, and more than twice the
            standard error of the difference; None: the metric's default (1, 0.3, 5, 1), and no failure.
        transform: turns an item of the loader into a batch.
        threads: how many threads the runtime may use.

    Returns:
        The report; `rich.print` shows it as tables, `to_json` as JSON.

    Example:
        ```python
        report = onnxqat.verify("model.qdq.onnx", "model.int8.onnx", test_batches, float_model="model.onnx")
        print(report.trained, report.deployed, report.agreement, report.latency.ratio)
        print(report.verdict)
        ```

    Raises:
        InputError: models or data do not fit, or the runtime refuses them; interpreter or runtime are missing.
    """
    check_max_drop(max_drop, float_model)
    qdq_model, deployed_model = io.load(trained), io.load(deployed)
    decisions = decisions_of(qdq_model, Labelling(class_axis, ignore_label, sample_axis))
    score = named(metric, decisions)
    reference = without_quantizers(qdq_model) if float_model is None else io.load(float_model, oldest_opset=7)
    # a deployed model of fixed sizes takes batches of any size in parts
    taking = qdq_model if fixed_sizes(deployed_model) else deployed_model
    checked = sources.batches(batches, taking, transform=transform, sample_axis=sample_axis)
    samples = checked.signature.samples
    runtime, hint, stands_for = _runtime(runtime, deployed_model, qdq_model)
    paired = None if float_model is None else Paired(Baseline(score, decisions))
    with opened(runtime, interpreter, threads, stands_for) as host:
        host.load("trained", qdq_model, simulate=True)
        deployed_file = host.load("deployed", deployed_model)
        float_file = host.load("float", reference, simulate=True)
        kernels = kernels_of(host, deployed_model)
        elsewhere = Elsewhere(host, deployed_model, kernels, score, decisions)
        found = compare.compared(host, track(checked, "verify"), score, decisions, samples, paired, elsewhere.watch)
        check_judged(max_drop, possible=paired is None or paired.baseline.can_judge)
        outputs = compare.differences(found, deployed_model)
        # a model of fixed sizes takes its samples one part after the other: one of them will do
        timed = {n: array[:1] for n, array in found.first.items()} if fixed_sizes(deployed_model) else found.first
        latency = _latency(host, timed, samples)
        saturation = elsewhere.result()
        evidence = Evidence(
            trained_score=found.score("trained"),
            agreement=found.agreement,
            runtime_hint=hint,
            saturates=saturation.saturates_here,
        )
        report = Report(
            runtime=host.version(),
            hint=hint or _simulated(runtime, deployed_model),
            samples=found.samples,
            metric=score.name,
            trained=found.score("trained"),
            deployed=found.score("deployed"),
            agreement=found.agreement,
            outputs=outputs,
            divergence=_divergence(host, (qdq_model, deployed_model), found, outputs),
            kernels=tuple(kernels),
            saturation=saturation,
            size=Size(_size(deployed, deployed_file), _size(float_model, float_file)),
            latency=latency,
            verdict=None if paired is None else paired.verdict(evidence, max_drop),
            placed=_placed(host, deployed_model),
            stands_for=stands_for,
        )
    integer, total = report.integer_count()
    log.info("verify: %s: %d of %d layers with weights on integer kernels", report.runtime, integer, total)
    return report


def evaluate(  # noqa: PLR0913  (the public interface is this flat)
    model: io.ModelLike,
    batches: str | Path | sources.Source | sources.Batches,
    *,
    metric: str | Function = "accuracy",
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    class_axis: int | None = None,
    ignore_label: int | None = None,
    sample_axis: int | None = None,
    transform: sources.Transform | None = None,
    threads: int = 2,
) -> float:
    """Returns the metric of one model on labelled data, as the runtime executes it.

    Args:
        model: the model, or its path: float, Q/DQ or deployed.
        batches: iterable of batches, a path, or `package.module:function`; see `onnxqat.data`.
        metric: "accuracy", "top5", "binary_accuracy", "f1", "iou", "map", "mse", "psnr", "ssim", "pearson", "perplexity", "wer",
            or a function from (first output, label) to one value per sample.
        runtime: "ort", "openvino" or "qnn"; None: the one that the model was made for.
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        class_axis: axis of the first output that holds the classes; None: the model's Softmax or the labels' shape tells it.
        ignore_label: label that is ignored, such as -100 or 255; None: all count.
        sample_axis: axis of the first input that counts samples; None: it follows from the model, and is usually the first.
        transform: turns an item of the loader into a batch.
        threads: number of threads that the runtime may use.

    Example:
        ```python
        accuracy = onnxqat.evaluate("model.int8.onnx", test_batches)
        error = onnxqat.evaluate("model.int8.onnx", test_batches, metric="mse", runtime="openvino")
        ```
    """
    loaded = io.load(model, oldest_opset=7)
    score = named(metric, decisions_of(loaded, Labelling(class_axis, ignore_label, sample_axis)))
    taking = any_samples(loaded)  # as in `verify`
    checked = sources.batches(batches, taking, needs_labels=True, transform=transform, sample_axis=sample_axis)
    chosen, hint, stands_for = _runtime(runtime, loaded)
    if hint is not None:
        log.warning("warning: %s", hint)
    with opened(chosen, interpreter, threads, stands_for) as host:
        host.load("model", loaded)
        return compare.scored(host, track(checked, "evaluate"), score, "model")


def baseline(
    model: io.ModelLike,
    batches: str | Path | sources.Source | sources.Batches,
    *,
    metric: str | Function = "accuracy",
    runtime: RuntimeName | None = None,
    interpreter: str | os.PathLike[str] | None = None,
    labelling: Labelling | None = None,
    threads: int = 2,
) -> Baseline:
    """Scores a float model on data, and says whether they belong together; arguments as for `verify`."""
    loaded = io.load(model, oldest_opset=7)
    labelling = labelling or Labelling()
    decisions = decisions_of(loaded, labelling)
    found = Baseline(named(metric, decisions), decisions)
    with opened(_runtime(runtime, loaded)[0], interpreter, threads) as host:
        host.load("float", loaded, simulate=True)
        for batch in track(sources.batches(batches, loaded, sample_axis=labelling.sample_axis), "float model"):
            inputs = {name: array for name, array in batch.items() if name != compare.LABEL}
            output = next(iter(host.run("float", inputs).values()))
            found.add(inputs, output, batch.get(compare.LABEL))
    return found


def check_max_drop(max_drop: float | None, float_model: io.ModelLike | None) -> None:
    """Raises InputError where a bound is no number that a drop can have, or there is no float model to judge against."""
    if max_drop is None:
        return
    if not (np.isfinite(max_drop) and max_drop >= 0):
        raise InputError(f"max drop is {max_drop}; it must be 0 or more")
    if float_model is None:
        raise InputError("max drop: is judged against the float model, which is not given; add --float MODEL")


def _runtime(asked: RuntimeName | None, *made: ir.Model) -> tuple[RuntimeName, str | None, str]:
    """The runtime to judge in, what to say where it is not that of the models' target, and what it stands for."""
    targets = [model.metadata_props["onnxqat.target"] for model in made if "onnxqat.target" in model.metadata_props]
    target = targets[0] if targets and targets[0] in RUNTIME_OF else None
    chosen = RUNTIME_OF[target] if asked is None else asked
    if target is None or chosen == RUNTIME_OF[target]:
        simulated = target is not None and TARGETS[target].simulated
        return chosen, None, TARGETS[target].title if target is not None and simulated else ""
    hint = (
        f"a model made for {target} was run in {PACKAGES[chosen]}, whose kernels it is not meant for; judge it with --runtime "
        f"{RUNTIME_OF[target]}, or insert for the other target"
    )
    return chosen, hint, ""


def _simulated(runtime: RuntimeName, deployed: ir.Model) -> str | None:
    """Returns what to say where the runtime has no kernels for the widths of the model's activations."""
    simulates = {bits for target in TARGETS.values() if target.runtime == runtime for bits in target.widths.simulated}
    widths = sorted({q.bits for q in quantizers(deployed) if not q.is_weight} & simulates)
    if not widths:
        return None
    shown = " and ".join(map(str, widths))
    return (
        f"activations of {shown} bits are a simulation in {PACKAGES[runtime]}, which has no kernels for them and computes in "
        "float between their quantizers"
    )


def _size(given: io.ModelLike | None, written: Path) -> int:
    """Bytes of the user's file or model, or of the file written for the runtime where there is neither."""
    if isinstance(given, onnx.ModelProto):
        return int(given.ByteSize())
    return models.size(given if isinstance(given, (str, os.PathLike)) else written)


def decisions_of(model: ir.Model, labelling: Labelling) -> Decisions:
    """Returns what the model's first output decides; shapes are inferred on a copy, as files need not hold them."""
    inferred = model.clone()
    infer(inferred)
    output = inferred.graph.outputs[0]
    samples = Samples.of(inferred, labelling.sample_axis)
    return Decisions.of(output, labelling, samples.outputs.get(str(output.name), 0))


def _divergence(
    host: Host,
    models: tuple[ir.Model, ir.Model],
    found: compare.Comparison,
    outputs: Iterable[compare.OutputDifference],
) -> Divergence | None:
    """Finds where the difference between trained and deployed model arises, only if an output differs by too many steps."""
    # an NPU rounds in its own way from the first layer on, and a simulation differs by types alone
    if host.runtime == "qnn" or host.stands_for:
        return None
    worst = max(outputs, key=lambda output: output.steps)
    return divergence(host, *models, found.worst[worst.output]) if worst.steps > ALARMING_STEPS else None


def _latency(host: Host, inputs: Arrays, samples: Samples) -> Latency:
    taken = host.time(["float", "deployed"], inputs, TIMING_SECONDS)
    return Latency(
        deployed=1e3 * float(np.median(taken["deployed"])),
        float_model=1e3 * float(np.median(taken["float"])),
        ratio=float(np.median(taken["deployed"] / taken["float"])),
        rounds=len(taken["float"]),
        batch=samples.rows(inputs, list(inputs)),
        threads=host.threads,
    )


def kernels_of(host: Host, deployed: ir.Model) -> list[fusion.Kernel]:
    """Returns the fate of each computing node of a deployed model in a runtime."""
    if host.stands_for:
        target = TARGETS[deployed.metadata_props[TARGET]].for_codes(quantizers(deployed))
        return fusion_structure.report(deployed, target)
    return _REPORTS[host.runtime](deployed, host.executed(fusion.marked(deployed)))


def _placed(host: Host, deployed: ir.Model) -> fusion.Placed | None:
    """Division between NPU and CPU; None where there is no NPU."""
    if host.runtime != "qnn":
        return None
    return fusion_qnn.placed(deployed, host.executed(fusion.marked(deployed)))
