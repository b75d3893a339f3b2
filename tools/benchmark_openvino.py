"""The OpenVINO target beside NNCF's post-training quantization: `python -m tools.benchmark_openvino --nncf-python … [--readme]`.

Each model is quantized to 8 bits, without training, by `onnxqat insert` and by `nncf.quantize` on the same calibration data. The
table shows layers with weights that OpenVINO runs on integers, Reorders of float data between them, the time of one thread over
the float model's, as the median over rounds taken in turn, and the quality: accuracy on labelled data where the model is a
trained one, else the signal-to-noise ratio of the outputs against the float model's.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxqat
from models import fashion_mnist
from onnxqat.process.processor import processor
from onnxqat.verification import openvino
from tools.networks import NETWORKS, OTHERS
from tools.readme import BENCHMARKS, replace_section
from tools.real_models.model import Batch
from tools.real_models.recipes import MODELS
from tools.real_models.run import CALIBRATION_BATCHES

FOLDER = Path(fashion_mnist.__file__).parent
LAYOUTS = {"resnet20": "", "separable": "_nhwc"}
#: Layers with weights, by OpenVINO's names of them as executed.
WEIGHTED = frozenset(
    {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "LSTMSequence", "GRUSequence", "RNNSeq"}
)
SECONDS = 6.0
HEADER = (
    "| model | integer layers | NNCF | float Reorders | NNCF | time over float | NNCF | quality, float | ours | NNCF |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)

Run = Callable[[Batch], NDArray[Any]]


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        title: for the table.
        path: of the float model.
        calibration: batches.
        timed: the batch that is timed.
        quality: function from the float model's run and another's to a score.
        unit: of the score.
    """

    title: str
    path: Path
    calibration: list[Batch]
    timed: Batch
    quality: Callable[[Run, Run], float]
    unit: str


def subjects(folder: Path) -> Iterator[Subject]:
    """The models of this repository, known structures with random weights, and six pretrained models."""
    for name, layout in LAYOUTS.items():
        data = {part: list(getattr(fashion_mnist, f"{part}{layout}")()) for part in ("calibration", "test")}
        images = [{"image": batch["image"]} for batch in data["calibration"]]
        timed = {"image": data["test"][0]["image"][:8]}
        yield Subject(name, FOLDER / f"{name}.onnx", images, timed, _accuracy(data["test"]), "%")
    for name, network in {**NETWORKS, **OTHERS}.items():
        model, path = network(), folder / "network.onnx"
        onnx.save(model, path)
        data = _random(model)
        yield Subject(name, path, data[:16], data[16], _signal_to_noise(data[17:]), "dB")
    for real in MODELS:
        found = real.data()
        calibration = found.inputs()[:CALIBRATION_BATCHES]
        yield Subject(real.title, real.path, calibration, found.test[0].inputs, _judged(found.judge), real.unit)


def _random(model: onnx.ModelProto) -> list[Batch]:
    value = model.graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    random = np.random.default_rng(0)
    return [{value.name: random.standard_normal((4, *shape), dtype=np.float32)} for _ in range(20)]


def _accuracy(batches: list[dict[str, NDArray[Any]]]) -> Callable[[Run, Run], float]:
    def quality(_: Run, run: Run) -> float:
        right = [run({"image": batch["image"]}).argmax(axis=1) == batch["label"] for batch in batches]
        return 100 * float(np.concatenate(right).mean())

    return quality


def _judged(judge: Callable[[Run], float]) -> Callable[[Run, Run], float]:
    return lambda _, run: judge(run)


def _signal_to_noise(batches: list[Batch]) -> Callable[[Run, Run], float]:
    def quality(whole: Run, run: Run) -> float:
        expected, found = (np.concatenate([one(batch) for batch in batches]) for one in (whole, run))
        noise = float(np.square(expected - found).sum())
        return 10 * np.log10(float(np.square(expected).sum()) / noise) if noise else float("inf")

    return quality


def by_us(subject: Subject, folder: Path) -> Path:
    """Our deployed model."""
    path = folder / "ours.onnx"
    inserted = onnxqat.insert(subject.path, subject.calibration, onnxqat.Config(target="openvino"))
    onnxqat.save(onnxqat.fold(inserted), path)
    return path


def by_nncf(subject: Subject, python: Path, folder: Path) -> Path:
    """The model that NNCF makes in its own environment."""
    samples, path = folder / "calibration.npz", folder / "nncf.xml"
    arrays = {f"{i}/{name}": array for i, batch in enumerate(subject.calibration) for name, array in batch.items()}
    np.savez(samples, **arrays)
    script = Path(__file__).with_name("nncf_ptq.py")
    subprocess.run([python, script, subject.path, samples, path], check=True, capture_output=True, text=True)
    return path


def layers(path: Path) -> tuple[str, str]:
    """Layers with weights on integers of how many, and Reorders of float data."""
    executed = openvino.executed(str(path), "", 1)["layers"]
    weighted = [one for one in executed if one["layerType"] in WEIGHTED]
    integer = sum(one["runtimePrecision"] in ("i8", "u8") for one in weighted)
    reorders = sum(one["layerType"] == "Reorder" and one["runtimePrecision"] == "f32" for one in executed)
    return f"{integer} of {len(weighted)}", str(reorders)


def ratios(runs: dict[str, Run], batch: Batch) -> dict[str, float]:
    """Processor time over the float model's."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(batch)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for name, run in runs.items():
            start = time.process_time()
            run(batch)
            taken[name].append(time.process_time() - start)
    whole = np.array(taken["float"])
    return {name: float(np.median(np.array(times) / whole)) for name, times in taken.items()}


def row(subject: Subject, python: Path, folder: Path) -> str:
    """The model's line of the table."""
    paths = {"float": subject.path, "ours": by_us(subject, folder), "NNCF": by_nncf(subject, python, folder)}
    runs = {name: _first_output(path) for name, path in paths.items()}
    times = ratios(runs, subject.timed)
    digits = 1 if subject.unit == "%" else 2
    scores = {name: f"{subject.quality(runs['float'], run):.{digits}f} {subject.unit}" for name, run in runs.items()}
    if scores["float"].startswith("inf"):
        scores["float"] = ""
    (integer, reorders), (theirs, their_reorders) = layers(paths["ours"]), layers(paths["NNCF"])
    cells = [subject.title, integer, theirs, reorders, their_reorders, f"{times['ours']:.2f}", f"{times['NNCF']:.2f}"]
    return "| " + " | ".join([*cells, *scores.values()]) + " |"


def _first_output(path: Path) -> Run:
    run = openvino.load(str(path), 1, simulate=False)
    return lambda batch: next(iter(run(dict(batch)).values()))


def main() -> None:
    """Prints the table, and with `--readme` writes it into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="titles of models; all unless given")
    parser.add_argument("--nncf-python", type=Path, required=True, help="interpreter of an environment with NNCF")
    parser.add_argument("--readme", action="store_true", help="write the table into docs/benchmarks.md too")
    arguments = parser.parse_args()
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as temporary:
        for subject in subjects(Path(temporary)):
            if not arguments.names or subject.title in arguments.names:
                lines.append(row(subject, arguments.nncf_python.absolute(), Path(temporary)))
                print(lines[-1], flush=True)
    table = "\n".join([*lines, "", f"Measured with {openvino.version()} on {processor()}, one thread."])
    print(f"\n{table}")
    if arguments.readme:
        replace_section("openvino", table, BENCHMARKS)


if __name__ == "__main__":
    main()
