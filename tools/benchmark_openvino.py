"""Compares models of onnxqat and of NNCF with the float model in OpenVINO: `python -m tools.benchmark_openvino --nncf-python …`.

Each of the committed classifiers is quantized to 8 bits for OpenVINO in three ways: inserted and folded by onnxqat without
training, with training, and by `nncf.quantize` on the same calibration images. All are then timed in turn in one process, so
that other work on the machine disturbs all alike; a ratio is the median over rounds. Accuracy is that of the 10,000 test images,
agreement the share of them with the float model's answer.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

import onnxqat
from models import fashion_mnist

MODELS = {"resnet20": "", "separable": "_nhwc"}
FOLDER = Path(fashion_mnist.__file__).parent
Images = NDArray[np.float32]
Run = Callable[[Images], NDArray[Any]]


def data(part: str, layout: str) -> fashion_mnist.Batches:
    """Batches of one part of Fashion-MNIST in a layout."""
    found: fashion_mnist.Batches = getattr(fashion_mnist, f"{part}{layout}")()
    return found


def write_ours(float_model: Path, layout: str, steps: int, folder: Path) -> dict[str, Path]:
    """Our deployed models: without training, and after that many steps of it."""
    config = onnxqat.Config(target="openvino", activation_range="min_max")
    inserted = onnxqat.insert(float_model, data("calibration", layout), config)
    trainer = onnxqat.Trainer(inserted, optimizer=onnxqat.AdamW(lr=1e-5), schedule=onnxqat.Cosine())
    trainer.schedule.plan(epochs=1, steps_per_epoch=steps)
    while trainer.schedule.position.step < steps:
        for batch in data("train", layout):
            if trainer.schedule.position.step < steps:
                trainer.step(batch)
    paths = {"ours": folder / "ours.onnx", "ours, trained": folder / "trained.onnx"}
    for path, model in zip(paths.values(), (inserted, trainer.model()), strict=True):
        onnxqat.save(onnxqat.fold(model), path)
    return paths


def write_nncf(float_model: Path, layout: str, python: Path, folder: Path) -> Path:
    """Writes the model that NNCF makes in its own environment."""
    images, output = folder / "calibration.npz", folder / "nncf.xml"
    np.savez(images, image=np.concatenate([batch["image"] for batch in data("calibration", layout)]))
    script = Path(__file__).with_name("nncf_ptq.py")
    subprocess.run([python, script, float_model, images, output], check=True, capture_output=True, text=True)
    return output


def compiled(path: Path, threads: int) -> Run:
    """The model on the CPU, float parts in float32."""
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    model = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda images: np.array(model(images)[0])


def latencies(runs: dict[str, Run], images: Images, seconds: float) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each run, all in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            start = time.perf_counter()
            run(images)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(times) for name, times in taken.items()}


def predictions(run: Run, layout: str) -> NDArray[np.int64]:
    """The class of each test image."""
    return np.concatenate([run(batch["image"]).argmax(axis=1) for batch in data("test", layout)])


def main() -> None:
    """Prints one line per model and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nncf-python", type=Path, required=True, help="interpreter of an environment with NNCF")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="images per timed run")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each model is timed")
    parser.add_argument("--steps", type=int, default=140, help="training steps of ours: 140 are an epoch")
    arguments = parser.parse_args()
    for name, layout in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, float_model = Path(temporary), FOLDER / f"{name}.onnx"
            paths = {"float": float_model, **write_ours(float_model, layout, arguments.steps, folder)}
            paths["NNCF"] = write_nncf(float_model, layout, arguments.nncf_python, folder)
            runs = {kind: compiled(path, arguments.threads) for kind, path in paths.items()}
        images = next(iter(data("test", layout)))["image"][: arguments.batch]
        times = latencies(runs, images, arguments.seconds)
        labels = np.concatenate([batch["label"] for batch in data("test", layout)])
        found = {kind: predictions(run, layout) for kind, run in runs.items()}
        for kind in runs:
            ratio = np.median(times[kind] / times["float"])
            print(
                f"{name}, {kind}: {np.median(times[kind]):.3f} ms, {ratio:.2f} of float; "
                f"accuracy {100 * (found[kind] == labels).mean():.2f} %, "
                f"agreement with float {100 * (found[kind] == found['float']).mean():.2f} %"
            )
        against = np.median(times["ours, trained"] / times["NNCF"])
        print(f"{name}: ours takes {against:.2f} of NNCF's time", flush=True)


if __name__ == "__main__":
    main()
