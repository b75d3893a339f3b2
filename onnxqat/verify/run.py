"""The verify stage: a trained Q/DQ model and what it was folded into, side by side in a real runtime."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat import data
from onnxqat.graph import io
from onnxqat.graph.types import infer
from onnxqat.graph.without import without_quantizers
from onnxqat.labels import Decisions, Labelling
from onnxqat.progress import track
from onnxqat.samples import Samples
from onnxqat.verify import compare, fusion, fusion_openvino, fusion_ort, models
from onnxqat.verify.host import Arrays, Host, RuntimeName, opened
from onnxqat.verify.metrics import Metric, named
from onnxqat.verify.report import ALARMING_STEPS, Latency, Report, Size

log = logging.getLogger(__name__)

#: How long float and deployed model are timed.
TIMING_SECONDS = 4.0


def verify(  # noqa: PLR0913  (the public interface is this flat)
    trained: io.ModelLike,
    deployed: io.ModelLike,
    batches: str | Path | data.Source | data.Batches,
    *,
    runtime: RuntimeName = "ort",
    interpreter: str | os.PathLike[str] | None = None,
    metric: str | Metric = "accuracy",
    float_model: io.ModelLike | None = None,
    class_axis: int | None = None,
    ignore_label: int | None = None,
    sample_axis: int | None = None,
    transform: data.Transform | None = None,
    threads: int = 2,
) -> Report:
    """Runs both models on data and reports metric, agreement, kernels, size and latency.

    The Q/DQ model's quantizers are computed in float, as in training; the deployed model runs as the runtime sees fit.

    Args:
        trained: the Q/DQ model.
        deployed: what `fold` made of it.
        batches: iterable of batches, with labels under "label" for the metric; or what `data.read` takes.
        runtime: "ort" or "openvino".
        interpreter: Python interpreter of another environment that has the runtime; None: this one.
        metric: "accuracy", "binary_accuracy", "top5", "mse" or "psnr", or a function from (first output, label) to one value per
            sample.
        float_model: what size and latency are compared with; None: the Q/DQ model without its quantizers.
        class_axis: axis of the first output along which classes compete; None: told by the model's Softmax and the labels' shape.
        ignore_label: label that does not count, -100 or 255 say; None: all count.
        sample_axis: axis of the first input that counts samples; None: told by the model, the first as a rule.
        transform: turns an item of the loader into a batch.
        threads: how many threads the runtime may use.

    Raises:
        InputError: models or data do not fit, or the runtime refuses them; interpreter or runtime are missing.
    """
    qdq_model, deployed_model = io.load(trained), io.load(deployed)
    decisions = _decisions(qdq_model, Labelling(class_axis, ignore_label, sample_axis))
    metric_name, score = named(metric, decisions)
    reference = without_quantizers(qdq_model) if float_model is None else io.load(float_model, oldest_opset=7)
    checked = data.batches(batches, deployed_model, transform=transform, sample_axis=sample_axis)
    samples = checked.signature.samples
    with opened(runtime, interpreter, threads) as host:
        host.load("trained", qdq_model, simulate=True)
        deployed_file = host.load("deployed", deployed_model)
        float_file = host.load("float", reference)
        found = compare.compared(host, track(checked, "verify"), score, decisions, samples)
        outputs = compare.differences(found, deployed_model)
        latency = _latency(host, found.first, samples)
        kernels = _kernels(host, deployed_model)
        worst = max(outputs, key=lambda output: output.steps)
        report = Report(
            runtime=host.version(),
            samples=found.samples,
            metric=metric_name,
            trained=found.score("trained"),
            deployed=found.score("deployed"),
            agreement=found.agreeing / found.predictions if found.predictions else None,
            outputs=outputs,
            divergence=(
                compare.divergence(host, qdq_model, deployed_model, found.worst[worst.output])
                if worst.steps > ALARMING_STEPS
                else None
            ),
            kernels=tuple(kernels),
            size=Size(_size(deployed, deployed_file), _size(float_model, float_file)),
            latency=latency,
        )
    integer, total = report.integer_count()
    log.info("verify: %s: %d of %d layers with weights on integer kernels", report.runtime, integer, total)
    return report


def evaluate(  # noqa: PLR0913  (the public interface is this flat)
    model: io.ModelLike,
    batches: str | Path | data.Source | data.Batches,
    *,
    metric: str | Metric = "accuracy",
    runtime: RuntimeName = "ort",
    interpreter: str | os.PathLike[str] | None = None,
    class_axis: int | None = None,
    ignore_label: int | None = None,
    sample_axis: int | None = None,
    transform: data.Transform | None = None,
    threads: int = 2,
) -> float:
    """The metric of one model on labelled data, as the runtime executes it (see `verify` for the arguments)."""
    loaded = io.load(model, oldest_opset=7)
    _, score = named(metric, _decisions(loaded, Labelling(class_axis, ignore_label, sample_axis)))
    checked = data.batches(batches, loaded, needs_labels=True, transform=transform, sample_axis=sample_axis)
    with opened(runtime, interpreter, threads) as host:
        host.load("model", loaded)
        return compare.scored(host, track(checked, "evaluate"), score, "model")


def _size(given: io.ModelLike | None, written: Path) -> int:
    """Bytes of the user's file or model, or of the file written for the runtime where there is neither."""
    if isinstance(given, onnx.ModelProto):
        return int(given.ByteSize())
    return models.size(given if isinstance(given, (str, os.PathLike)) else written)


def _decisions(model: ir.Model, labelling: Labelling) -> Decisions:
    """What the model's first output decides; shapes are inferred on a copy, as files need not hold them."""
    inferred = model.clone()
    infer(inferred)
    output = inferred.graph.outputs[0]
    samples = Samples.of(inferred, labelling.sample_axis)
    return Decisions.of(output, labelling, samples.outputs.get(str(output.name), 0))


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


def _kernels(host: Host, deployed: ir.Model) -> list[fusion.Kernel]:
    executed = host.executed(fusion.marked(deployed))
    if "layers" in executed:
        return fusion_openvino.report(deployed, executed["layers"])
    return fusion_ort.report(deployed, executed["model"])
