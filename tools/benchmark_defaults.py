"""What 8 bits give without any option: the demo's models through `onnxqat run`, the pretrained ones as it would without labels.

    python -m tools.benchmark_defaults [MODEL ...] [--readme]

The demo's models train on labels, keep the epoch that is best on validation images, and are judged on the 10,000 test images.
The pretrained models have ranges, loss (`distill`), rate and number of epochs as `run` has them. Lines without a new result stay.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import onnx

import onnxqat
from onnxqat import Config
from onnxqat.pipeline import WARMUP_STEPS
from onnxqat.process.processor import processor
from onnxqat.training.optimize.schedules import Cosine
from tools import demo
from tools.readme import BENCHMARKS, keep_lines, line, replace_section, section
from tools.real_models.model import deviation_of_difference, labels_of, outputs_of
from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import CALIBRATION_BATCHES, first_output

HEADER = (
    "| model | float | inserted | trained, deployed | against float | minutes | processor |\n"
    "| --- | --: | --: | --: | --: | --: | --- |"
)
TITLES = {name: name for name in demo.LAYOUTS} | {model.name: model.title for model in MODELS}
EPOCHS = 3


def main() -> None:
    """Measures the models asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_defaults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(TITLES)}; all if none is named")
    parser.add_argument("--readme", action="store_true", help="write the table into docs/benchmarks.md")
    asked = parser.parse_args()
    real = {model.name: model for model in MODELS}
    for name in asked.names or TITLES:
        found = _of_real(real[name]) if name in real else _of_demo(name)
        print(found, flush=True)
        if asked.readme:
            table = keep_lines(section("defaults", BENCHMARKS), HEADER, [found], TITLES.values())
            replace_section("defaults", table, BENCHMARKS)


def _of_demo(name: str) -> str:
    """The line of a model of the demo."""
    start = _seconds()
    with tempfile.TemporaryDirectory() as folder:
        found = demo.run(name, 8, Path(folder), [])
    scores = [100 * found[stage] for stage in ("float", "inserted", "deployed")]
    return _line(name, scores, found["verdict"]["noise"] / 2, "%", start)


def _of_real(model: RealModel) -> str:
    """The line of a pretrained model."""
    data, proto, start = model.data(), onnx.load(model.path), _seconds()
    inserted = onnxqat.insert(proto, data.inputs()[:CALIBRATION_BATCHES], Config())
    trainer = onnxqat.Trainer(inserted, loss="distill", teacher=proto, schedule=Cosine(warmup_steps=WARMUP_STEPS))
    trainer.fit(data.inputs(), epochs=EPOCHS)
    models = proto, onnxqat.fold(inserted), onnxqat.fold(trainer.model())
    outputs = [outputs_of(first_output(each), data.test) for each in models]
    scores = [data.score(each, labels_of(data.test)) for each in outputs]
    return _line(model.title, scores, deviation_of_difference(data, outputs[0], outputs[2]), model.unit, start)


def _line(title: str, scores: list[float], error: float, unit: str, start: float) -> str:
    digits = 1 if unit == "%" and title not in demo.LAYOUTS else 2
    whole, _, deployed = scores
    shown = [title, *(f"{score:.{digits}f} {unit}" for score in scores)]
    shown += [f"{deployed - whole:+.{digits}f} ± {error:.{digits}f}", f"{(_seconds() - start) / 60:.1f}"]
    return line([*shown, processor().partition(",")[0]])


def _seconds() -> float:
    """Processor time of this process and those that it has started."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
