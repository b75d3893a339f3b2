"""What runs on each target: `python -m tools.benchmark_targets [--only NET/TARGET …] [--python TARGET=PYTHON …] [--docs]`.

Each net is trained in float on Fashion-MNIST, quantized for the target, trained for an epoch of 9,000 images, folded and run, in
the runtime or in its emulator. The table shows its nodes on integers, the findings of `onnxqat check`, the accuracy of the
simulation that training saw and that of the deployed model on the same images, how often both give the same answer, and how far
their outputs are apart (root mean square). For QNN the last column has that distance for ONNX Runtime's own configuration of it,
without training, by its own quantizer. What is measured is kept in `.cache/targets`, so that a run may be cut short; `--docs`
writes what is there. Remove it to measure again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import onnxqat
from models import fashion_mnist
from onnxqat.graph import io
from onnxqat.names import RuntimeName
from onnxqat.verification.host import Host, opened
from tools.readme import ROOT, replace_section

FOLDER = ROOT / ".cache" / "targets"
KEPT = FOLDER / "results.json"
PAGE = ROOT / "docs" / "targets.md"
HEADER = (
    "| net | target | nodes on integers | `check` | float | trained | deployed | same answers | rms | ONNX Runtime's own |\n"
    "| --- | --- | --: | --- | --: | --: | --: | --: | --: | --: |"
)

#: Test images that are judged where nothing is emulated.
LARGE = 2000

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Net:
    """A trained float network and its data.

    Attributes:
        title: for the table.
        path: function that gives its file.
        data: function from "train", "calibration" or "test" to batches.
        images: number of test images that are judged in an emulator.
    """

    title: str
    path: Callable[[], Path]
    data: Callable[[str], list[Batch]]
    images: int = 200


@dataclass(frozen=True)
class Way:
    """A target in one of its configurations.

    Attributes:
        title: for the table.
        target: its name.
        runtime: what runs it.
        how: "run" in the runtime itself, "emulated", or "simulated" in float.
        settings: of `onnxqat.Config`.
        fixed: whether the deployed model takes one image at a time, as emulators do, slowly.
        own: function from a float model and calibration data to the model that the runtime's own quantizer makes of them.
    """

    title: str
    target: str
    runtime: RuntimeName
    how: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False
    own: Callable[[onnx.ModelProto, list[Batch]], onnx.ModelProto] | None = None


def _fashion(name: str, layout: str = "") -> Net:
    folder = Path(fashion_mnist.__file__).parent
    return Net(name, lambda: folder / f"{name}.onnx", lambda part: list(getattr(fashion_mnist, f"{part}{layout}")()))


def _trained(name: str, title: str, images: int) -> Net:
    def networks() -> Any:
        from tools import trained_networks  # imports PyTorch

        return trained_networks

    return Net(title, lambda: networks().path(name), lambda part: networks().batches(name, part), images)


NETS = {
    "resnet20": _fashion("resnet20"),
    "separable": _fashion("separable", "_nhwc"),
    "bert": _trained("bert", "BERT-like", 300),
    "unet": _trained("unet", "U-Net-like", 50),
}


def by_onnxruntime(model: onnx.ModelProto, calibration: list[Batch]) -> onnx.ModelProto:
    """The model as ONNX Runtime's quantizer makes it with its configuration for QNN, as it stands."""
    from onnxruntime.quantization import CalibrationDataReader, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"image": image[None]} for batch in calibration for image in batch["image"]])

        def get_next(self) -> Batch | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        source, plain, ready, result = (Path(folder, f"{n}.onnx") for n in ("float", "plain", "ready", "quantized"))
        fixed = onnx.ModelProto.FromString(model.SerializeToString())
        for value in (*fixed.graph.input, *fixed.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(fixed, source)
        quant_pre_process(source, plain, skip_symbolic_shape=True)
        taken = ready if qnn_preprocess_model(plain, ready, fuse_layernorm=True) else plain
        quantize(taken, result, get_qnn_qdq_config(taken, Reader()))
        return onnx.load(result)


#: One entry for each target. A new one needs the name of its runtime here, and its settings.
WAYS = {
    "ort-cpu": Way("`ort-cpu`", "ort-cpu", "ort", "run"),
    "openvino": Way("`openvino`", "openvino", "openvino", "run"),
    "tensorrt": Way("`tensorrt`", "tensorrt", "ort", "simulated"),
    "qnn": Way("`qnn`", "qnn", "qnn", "emulated", fixed=True, own=by_onnxruntime),
    "qnn-auto": Way("`qnn`, `--sixteen auto`", "qnn", "qnn", "emulated", {"sixteen": "auto"}, fixed=True),
    "qnn-16": Way("`qnn`, 16 bits", "qnn", "qnn", "emulated", {"activation_bits": 16}, fixed=True),
}


def measured(net: str, way: str, python: str | None) -> dict[str, Any]:
    """Folds and runs a trained net on a target; shares are in percent."""
    chosen, judged = WAYS[way], _judged(net, way)
    model, trained = onnx.load(NETS[net].path()), _trained_model(net, way)
    deployed = onnxqat.fold(trained)
    report = onnxqat.verify(trained, deployed, [_rows(judged[0], 2)], runtime=chosen.runtime, interpreter=python)
    integer, total = report.integer_count(weighted=False)
    findings = onnxqat.check(deployed)
    with opened(chosen.runtime, python) as host:
        host.load("float", io.load(model), simulate=True)
        host.load("trained", io.load(trained), simulate=True)
        host.load("deployed", io.load(deployed))
        outputs = {name: _outputs(host, name, judged) for name in ("float", "trained", "deployed")}
    label = np.concatenate([batch["label"] for batch in judged])
    answers = {name: output.argmax(axis=1) for name, output in outputs.items()}
    return {
        "nodes": f"{integer} of {total}",
        "check": {kind: len(findings.of(kind)) for kind in ("refused", "split", "float")},
        **{name: 100 * float((answer == label).mean()) for name, answer in answers.items()},
        "agreement": 100 * float((answers["trained"] == answers["deployed"]).mean()),
        "rms": _rms(outputs["trained"], outputs["deployed"]),
        "images": len(label),
        "runtime": report.runtime,
    }


def measured_own(net: str, way: str, python: str | None) -> dict[str, Any]:
    """Runs the model that the runtime's own quantizer makes, without training."""
    chosen, judged = WAYS[way], _judged(net, way)
    assert chosen.own is not None
    theirs = ir.from_proto(chosen.own(onnx.load(NETS[net].path()), NETS[net].data("calibration")))
    images = [{"image": image[None]} for batch in judged for image in batch["image"]]
    with opened(chosen.runtime, python) as host:
        host.load("theirs", theirs, simulate=True)
        host.load("deployed", theirs)
        return {"rms": _rms(*(_outputs(host, name, images) for name in ("theirs", "deployed")))}


def _trained_model(net: str, way: str) -> onnx.ModelProto:
    """The Q/DQ model after an epoch, which is kept."""
    file = FOLDER / f"{net}.{way}.onnx"
    if not file.exists():
        model = onnx.load(NETS[net].path())
        settings = dict(WAYS[way].settings)
        if WAYS[way].fixed:
            settings["fixed_inputs"] = {model.graph.input[0].type.tensor_type.shape.dim[0].dim_param: 1}
        config = onnxqat.Config(target=WAYS[way].target, **settings)
        qdq = onnxqat.insert(model, NETS[net].data("calibration"), config)
        trainer = onnxqat.Trainer(qdq, loss="cross_entropy", optimizer=onnxqat.AdamW(lr=1e-4))
        trainer.fit(NETS[net].data("train"), epochs=1)
        onnxqat.save(trainer.model(), file)
    return onnx.load(file)


def _judged(net: str, way: str) -> list[Batch]:
    return _first(NETS[net].data("test"), NETS[net].images if WAYS[way].fixed else LARGE)


def _first(batches: list[Batch], images: int) -> list[Batch]:
    """As many of the first images, in batches."""
    found: list[Batch] = []
    for batch in batches:
        left = images - sum(len(one["image"]) for one in found)
        if left > 0:
            found.append(_rows(batch, left))
    return found


def _rows(batch: Batch, count: int) -> Batch:
    return {name: array[:count] for name, array in batch.items()}


def _outputs(host: Host, name: str, judged: list[Batch]) -> np.ndarray:
    return np.concatenate([next(iter(host.run(name, {"image": b["image"]}).values())) for b in judged])


def _rms(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.square(one.astype(np.float64) - other).mean()))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the documentation."""
    found = [(net, way) for net in NETS for way in WAYS if f"{net}/{way}" in results]
    lines = [_line(net, way, results) for net, way in found]
    kinds = sorted({(results[f"{net}/{way}"]["runtime"], WAYS[way].how) for net, way in found})
    counts = sorted({(results[f"{net}/{way}"]["images"], WAYS[way].how) for net, way in found})
    said = "; ".join(f"{runtime}: {how}" for runtime, how in kinds)
    judged = ", ".join(f"{count} ({how})" for count, how in counts)
    return "\n".join([HEADER, *lines, "", f"{said}. Numbers of test images: {judged}."])


def _line(net: str, way: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    row, own = results[f"{net}/{way}"], results.get(f"{net}/{way}/own")
    shares = [*(f"{row[name]:.1f} %" for name in ("float", "trained", "deployed")), f"{row['agreement']:.2f} %"]
    found = ", ".join(f"{count} {kind}" for kind, count in row["check"].items() if count) or "0"
    cells = [NETS[net].title, WAYS[way].title, row["nodes"], found, *shares, f"{row['rms']:.2g}"]
    return f"| {' | '.join([*cells, '' if own is None else format(own['rms'], '.2g')])} |"


def _steps(only: Sequence[str] | None) -> Iterator[tuple[str, Callable[[str | None], dict[str, Any]], str]]:
    """Key of each result that is asked for, the function that measures it, and its runtime."""
    for net in NETS:
        for way, chosen in WAYS.items():
            if only is None or f"{net}/{way}" in only:
                yield f"{net}/{way}", partial(measured, net, way), chosen.runtime
                if chosen.own is not None:
                    yield f"{net}/{way}/own", partial(measured_own, net, way), chosen.runtime


def main() -> None:
    """Measures what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="NET/TARGET", help="which rows; default: all")
    parser.add_argument("--python", nargs="*", default=[], metavar="RUNTIME=PYTHON", help="environments of runtimes")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/targets.md")
    arguments = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in arguments.python)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for key, measure, runtime in _steps(arguments.only):
        if key not in _kept():
            found = measure(pythons.get(runtime))
            KEPT.write_text(json.dumps({**_kept(), key: found}, indent=1))  # others may have written meanwhile
            print(key, found, flush=True)
    if arguments.docs:
        replace_section("targets", table(_kept()), PAGE)
    else:
        print(table(_kept()))


def _kept() -> dict[str, Any]:
    return dict(json.loads(KEPT.read_text())) if KEPT.exists() else {}


if __name__ == "__main__":
    main()
