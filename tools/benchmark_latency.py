"""Times the deployed models of real networks as `insert` and as `insert --for latency` make them, over float, in each runtime.

    python -m tools.benchmark_latency [MODEL ...] [--target ort-cpu|openvino] [--interpreter PYTHON] [--readme]

Models are calibrated on the batch that they are timed on; float and deployed run in turn, and the ratio is a median over rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxqat
from onnxqat import Config, InputError
from onnxqat.process.processor import processor
from tools.readme import BENCHMARKS, ROOT, keep_lines, line, replace_section, section
from tools.real_models.recipes import MODELS

DEMO = ("resnet20", "separable")
TARGETS = {"ort-cpu": "ONNX Runtime", "openvino": "OpenVINO"}
HEADER = (
    "| model | runtime | layers | left in float | as inserted | for latency | minutes | processor |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --- |"
)


def main() -> None:
    """Measures the models asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_latency", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="names of files; all unless given")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="all unless given")
    parser.add_argument("--interpreter", help="interpreter with the onnxruntime to time in; this one unless given")
    parser.add_argument(
        "--readme", action="store_true", help="write lines into docs/benchmarks.md, each as soon as it is measured"
    )
    asked, known = parser.parse_args(), [*DEMO, *(model.name for model in MODELS)]
    print(HEADER)
    for name in asked.names or known:
        for target in asked.target or TARGETS:
            found = row(name, target, asked.interpreter if target == "ort-cpu" else None)
            print(found, flush=True)
            if asked.readme:
                table = keep_lines(section("latency", BENCHMARKS), HEADER, [found], known, key=2)
                replace_section("latency", table, BENCHMARKS)


def row(name: str, target: str, interpreter: str | None) -> str:
    """The line of a model in the runtime of a target."""
    path, batch = _subject(name)
    shown, start = [name, TARGETS[target]], time.perf_counter()
    try:
        found = onnxqat.faster(path, [batch], Config(target=target), interpreter=interpreter)
    except InputError as error:
        return line([*shown, "", str(error), "", "", "", processor()])
    minutes = (time.perf_counter() - start) / 60
    ratios = [_ratio(path, batch, config, interpreter) for config in (Config(target=target), found.config)]
    shown += [str(found.layers), str(len(found.floats)), *(f"{ratio:.2f}" for ratio in ratios), f"{minutes:.0f}"]
    return line([*shown, processor()])


def _ratio(path: Path, batch: Any, config: Config, interpreter: str | None) -> float:
    qdq = onnxqat.insert(path, [batch], config)
    report = onnxqat.verify(qdq, onnxqat.fold(qdq), [batch], interpreter=interpreter, float_model=path)
    return report.latency.ratio


def _subject(name: str) -> tuple[Path, Any]:
    """A model's file, and a batch of its data."""
    real = next((model for model in MODELS if model.name == name), None)
    if real is not None:
        return real.path, real.data(64, 16).inputs()[0]
    path = ROOT / "models" / f"{name}.onnx"
    image = onnx.load(path).graph.input[0]
    sizes = [dim.dim_value for dim in image.type.tensor_type.shape.dim][1:]
    return path, {image.name: np.random.default_rng(0).standard_normal((64, *sizes), dtype=np.float32)}


if __name__ == "__main__":
    main()
