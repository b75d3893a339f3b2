"""Accuracy of both Fashion-MNIST models at 8, 4, 3 and 2 bits: `python -m tools.benchmark_accuracy [--json FILE]`.

For each model, target and width: the accuracy of the float model, of the model deployed right after insertion, and of the model
deployed after training, as the runtime executes them on the 10,000 test images; with the agreement of trained and deployed model.
Below 8 bits the first and the last layer keep 8. Test images decide nothing: training reads 9,000 training images (`--full`:
59,000, which `python -m tools.fetch_fashion_mnist` fetches), and the best epoch is chosen on 1,000 others.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onnxqat import pipeline
from onnxqat.config import Config
from onnxqat.pipeline import recovery, request

ROOT = Path(__file__).parents[1]
#: AdamW's largest learning rate by width. Fewer bits move weights further from where they were.
RATES = {8: 1e-5, 4: 1e-3, 3: 1e-3, 2: 1e-3}
LAYOUTS = {"resnet20": "", "separable": "_nhwc"}
RUNTIMES = {"ort-cpu": "ort", "openvino": "openvino"}


@dataclass(frozen=True)
class Row:
    """Accuracies (0 to 1) of one model at one width on one target."""

    model: str
    target: str
    bits: int
    epochs: int
    float_model: float
    inserted: float
    trained: float
    deployed: float
    agreement: float
    steps: float


def measure(model: str, target: str, bits: int, epochs: int, *, full: bool, threads: int, loss: str) -> Row:
    """Runs all stages."""
    layout = LAYOUTS[model]
    named = {split: f"models.fashion_mnist:{split}{layout}" for split in ("train", "calibration", "validation", "test")}
    if full:
        named["train"] = f"models.fashion_mnist:train_full{layout}"
    outcome = pipeline.run(
        ROOT / "models" / f"{model}.onnx",
        request.Data(**named),
        Config(target=target, weight_bits=bits, activation_bits=bits),
        request.Training(epochs=epochs, lr=RATES[bits], threads=threads, loss=loss),
        request.Judge(RUNTIMES[target]),
        recovery.Keeping(lambda _: None),
    )
    report = outcome.report
    scores = (outcome.float_score, outcome.inserted_score, report.trained, report.deployed, report.agreement)
    return Row(model, target, bits, epochs, *(float(s or 0) for s in scores), report.worst.steps)


def table(rows: list[Row]) -> Table:
    """All rows, accuracies in percent and differences in points."""
    shown = Table("model", "target", "bits", "epochs", "float", "inserted", "trained", "to float", "agreement", "steps")
    for r in rows:
        percents = [f"{100 * a:.2f}" for a in (r.float_model, r.inserted, r.deployed)]
        change = f"{100 * (r.deployed - r.float_model):+.2f}"
        shown.add_row(
            r.model, r.target, str(r.bits), str(r.epochs), *percents, change, f"{r.agreement:.2%}", f"{r.steps:.1f}"
        )
    return shown


def main() -> None:
    """Prints a line as each is done, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--targets", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--bits", nargs="+", type=int, choices=RATES, default=list(RATES))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="train on 59,000 images")
    parser.add_argument("--loss", default="cross_entropy", help="distill forgets less of what the model knew at 8 bits")
    parser.add_argument("--threads", type=int, default=0, help="cores to use, 0: all")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    rows: list[Row] = []
    console = Console(width=120)
    for model in arguments.models:
        for target in arguments.targets:
            for bits in arguments.bits:
                options = {"full": arguments.full, "threads": arguments.threads, "loss": arguments.loss}
                rows.append(measure(model, target, bits, arguments.epochs, **options))
                console.print(table(rows[-1:]))
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    console.print(table(rows))


if __name__ == "__main__":
    main()
