"""Both models of `models/` through `onnxqat run`, at 8 and at 4 bits, and a table of the results: `make demo`.

    python -m tools.demo [--readme]

Training reads 9,000 images, the best epoch is chosen on 1,000 others, and the table shows the 10,000 test images. Latency is
that of a batch of 64 in the environment's ONNX Runtime, the float model and the deployed one in turn; the processor is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxqat.process.processor import processor
from tools.readme import BENCHMARKS, replace_section

ROOT = Path(__file__).parents[1]
LAYOUTS = {"resnet20": "", "separable": "_nhwc"}
#: Arguments of `onnxqat run` for each width.
OPTIONS = {8: ["--lr", "1e-5"], 4: ["--weight-bits", "4", "--activation-bits", "4"]}
HEADER = "| model | | accuracy | size | latency | nodes on integer kernels |\n| --- | --- | --- | --- | --- | --- |"


def run(model: str, bits: int, folder: Path, options: Sequence[str]) -> dict[str, Any]:
    """Calls the command line with these options as a user would; returns the report that it writes."""
    data = [
        part
        for option, split in (("data", "train"), ("validation", "validation"), ("test", "test"))
        for part in (f"--{option}", f"models.fashion_mnist:{split}{LAYOUTS[model]}")
    ]
    deployed, report = folder / f"{model}.int{bits}.onnx", folder / f"{model}.int{bits}.json"
    command = ["run", f"models/{model}.onnx", *data, *options, "--json", str(report)]
    print("$ onnxqat", *command, "-o", deployed.name, flush=True)
    subprocess.run([sys.executable, "-m", "onnxqat", *command, "-o", str(deployed)], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def rows(model: str, eight: dict[str, Any], four: dict[str, Any]) -> list[str]:
    """The model's lines of the table."""
    return [
        _row(model, "float", eight["float"], eight["size"]["float_model"], eight["latency"]["float_model"], ""),
        _row("", "int8, post-training", eight["inserted"], *_deployed(eight)),
        _row("", "int8, trained", eight["deployed"], *_deployed(eight)),
        _row("", "4-bit, trained", four["deployed"], *_deployed(four)),
    ]


def _deployed(report: dict[str, Any]) -> tuple[int, float, str]:
    nodes = report["nodes"]
    return report["size"]["deployed"], report["latency"]["deployed"], f"{nodes['integer']} of {nodes['total']}"


def _row(model: str, state: str, accuracy: float, size: int, latency: float, nodes: str) -> str:
    return f"| {model} | {state} | {accuracy:.2%} | {size / 1e3:.0f} kB | {latency:.1f} ms | {nodes} |"


def main() -> None:
    """Runs all four and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="write the table into docs/benchmarks.md too")
    arguments = parser.parse_args()
    start = time.monotonic()
    lines = [HEADER]
    with tempfile.TemporaryDirectory() as folder:
        for model in LAYOUTS:
            lines += rows(
                model, *(run(model, bits, Path(folder), ["--epochs", "1", *OPTIONS[bits]]) for bits in OPTIONS)
            )
    table = "\n".join([*lines, "", f"Measured on {processor()}."])
    print(f"\n{table}\n\n{time.monotonic() - start:.0f} s")
    if arguments.readme:
        replace_section("demo", table, BENCHMARKS)


if __name__ == "__main__":
    main()
