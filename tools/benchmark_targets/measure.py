"""A network on a target: trained, folded, judged and run; what is slow is kept."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import onnxqat
from onnxqat.graph import io
from onnxqat.process.processor import processor
from onnxqat.verification.host import Host, opened
from tools.benchmark_targets.nets import LARGE, NETS, WAYS
from tools.readme import ROOT
from tools.real_models.model import Examples, labels_of

FOLDER = ROOT / ".cache" / "targets"


def measured(net: str, way: str, python: str | None) -> dict[str, Any]:
    """Folds and runs a net on a target; one that the target refuses has the reason alone."""
    subject, chosen, data = NETS[net], WAYS[way], judged(net, way)
    try:
        qdq = quantized(net, way)
        deployed = onnxqat.fold(qdq)
    except onnxqat.UnsupportedModelError as error:
        return {"refused": str(error)}
    report = onnxqat.verify(qdq, deployed, [_rows(data[0], 2).inputs], runtime=chosen.runtime, interpreter=python)
    integer, total = report.integer_count(weighted=False)
    findings = onnxqat.check(deployed)
    with opened(chosen.runtime, python) as host:
        host.load("float", ir.load(subject.path()), simulate=True)
        host.load("trained", io.load(qdq), simulate=True)
        host.load("deployed", io.load(deployed), simulate=chosen.how == "simulated")
        outputs = {name: [_first(host, name, batch) for batch in data] for name in ("float", "trained")}
        code = zlib.crc32(deployed.SerializeToString())
        kept = FOLDER / f"{net}.{way}.{code:08x}" if chosen.how == "emulated" else None
        outputs["deployed"] = _resumed(host, data, kept)
    scores = {name: subject.score(each, labels_of(data)) for name, each in outputs.items()}
    return {
        "nodes": f"{integer} of {total}",
        "check": {kind: len(findings.of(kind)) for kind in ("refused", "split", "float")},
        **scores,
        "agreement": agreement(outputs["trained"], outputs["deployed"], subject.classes),
        "rms": rms(outputs["trained"], outputs["deployed"]),
        "size": rms(outputs["trained"], [np.zeros_like(each) for each in outputs["trained"]]),
        "images": sum(len(batch.labels) for batch in data),
        "runtime": report.runtime,
        "processor": processor(),
    }


def measured_own(net: str, way: str, python: str | None) -> dict[str, Any]:
    """Runs the model that the runtime's own quantizer makes, without training."""
    chosen, data = WAYS[way], judged(net, way)
    assert chosen.own is not None
    calibration = [batch.inputs for batch in NETS[net].data("calibration")]
    theirs = ir.from_proto(chosen.own(onnx.load(NETS[net].path()), calibration))
    images = [_rows(batch, row + 1, row) for batch in data for row in range(len(batch.labels))]
    with opened(chosen.runtime, python) as host:
        host.load("theirs", theirs, simulate=True)
        host.load("deployed", theirs)
        expected, found = ([_first(host, name, image) for image in images] for name in ("theirs", "deployed"))
        return {"rms": rms(expected, found), "images": len(images), "processor": processor()}


def quantized(net: str, way: str) -> onnx.ModelProto:
    """The Q/DQ model, after an epoch where the net is trained, which is kept."""
    file, subject = FOLDER / f"{net}.{way}.onnx", NETS[net]
    if not file.exists():
        model, settings = onnx.load(subject.path()), dict(WAYS[way].settings)
        if WAYS[way].fixed:
            settings["fixed_inputs"] = _sizes(model, judged(net, way)[0])
        config = onnxqat.Config(target=WAYS[way].target, **settings)
        qdq = onnxqat.insert(model, [batch.inputs for batch in subject.data("calibration")], config)
        if subject.trained:
            trainer = onnxqat.Trainer(qdq, loss="cross_entropy", optimizer=onnxqat.AdamW(lr=1e-4))
            data = subject.data("train")
            trainer.fit([{**batch.inputs, "label": np.array(batch.labels)} for batch in data], epochs=1)
            qdq = trainer.model()
        onnxqat.save(qdq, file)
    return onnx.load(file)


def _sizes(model: onnx.ModelProto, batch: Examples) -> dict[str, int]:
    """Free sizes of the inputs as the batch has them, one sample at a time."""
    found = {}
    for value in model.graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param:
                found[size.dim_param] = batch.inputs[value.name].shape[axis] if axis else 1
    return found


def judged(net: str, way: str) -> list[Examples]:
    """Test batches; where sizes are fixed, those of the first one's."""
    batches = NETS[net].data("test")
    if not WAYS[way].fixed:
        return first_of(batches, LARGE)
    shapes = _shapes(batches[0])
    return first_of([batch for batch in batches if _shapes(batch) == shapes], NETS[net].images)


def _shapes(batch: Examples) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in batch.inputs.items()}


def first_of(batches: Sequence[Examples], images: int) -> list[Examples]:
    """As many of the first images, in batches."""
    found: list[Examples] = []
    for batch in batches:
        left = images - sum(len(one.labels) for one in found)
        if left > 0:
            found.append(_rows(batch, left))
    return found


def _rows(batch: Examples, end: int, start: int = 0) -> Examples:
    return Examples({name: array[start:end] for name, array in batch.inputs.items()}, batch.labels[start:end])


def _first(host: Host, name: str, batch: Examples) -> np.ndarray:
    """The first output of a loaded model."""
    return next(iter(host.run(name, dict(batch.inputs)).values()))


def _resumed(host: Host, data: Sequence[Examples], kept: Path | None) -> list[np.ndarray]:
    """Outputs of the deployed model, each kept in a folder where one is given."""
    found = []
    for number, batch in enumerate(data):
        file = None if kept is None else kept / f"{number}.{len(batch.labels)}.npy"
        if file is not None and file.exists():
            found.append(np.load(file, allow_pickle=False))
            continue
        found.append(_first(host, "deployed", batch))
        if file is not None:
            file.parent.mkdir(exist_ok=True)
            part = file.with_suffix(".part.npy")
            np.save(part, found[-1], allow_pickle=False)
            part.replace(file)
    return found


def agreement(one: Sequence[np.ndarray], other: Sequence[np.ndarray], classes: int | None) -> float | None:
    """Share of equal answers, in percent."""
    if classes is None:
        return None
    same = [(a.argmax(classes) == b.argmax(classes)).ravel() for a, b in zip(one, other, strict=True)]
    return 100 * float(np.concatenate(same).mean())


def rms(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Root mean square of the difference."""
    squares = [np.square(a.astype(np.float64) - b).ravel() for a, b in zip(one, other, strict=True)]
    return float(np.sqrt(np.concatenate(squares).mean()))
