"""Times `sensitivity` and `mixed_precision` on the models of the demo and the pretrained ones: a table in docs/benchmarks.md.

    python -m tools.benchmark_search [MODEL ...] [--readme]

Both with their defaults: all values alone at 8, 4 and 2 bits, on 64 samples; and widths for a mean of 5 bits, on 256 samples.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TypeVar

import onnxqat
from onnxqat.process.processor import processor
from tools.benchmark_mixed import data_of, path_of
from tools.readme import BENCHMARKS, keep_lines, line, replace_section, section
from tools.real_models.recipes import MODELS

HEADER = (
    "| model | values | sensitivity, s | weights | mixed precision, s | its choice | processor |\n"
    "| --- | --: | --: | --: | --: | --- | --- |"
)
T = TypeVar("T")
NAMES = ("resnet20", "separable", *(model.name for model in MODELS))


def main() -> None:
    """Measures the models asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_search", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(NAMES)}; all if none is named")
    parser.add_argument("--readme", action="store_true", help="write lines into docs/benchmarks.md")
    asked = parser.parse_args()
    for name in asked.names or NAMES:
        found = row(name)
        print(found, flush=True)
        if asked.readme:
            table = keep_lines(section("search", BENCHMARKS), HEADER, [found], NAMES)
            replace_section("search", table, BENCHMARKS)


def row(name: str) -> str:
    """The line of a model."""
    path, inputs = path_of(name), data_of(name).inputs()
    costs, sensing = _timed(lambda: onnxqat.sensitivity(path, inputs))
    mixed, searching = _timed(lambda: onnxqat.mixed_precision(path, inputs, bits=5.0))
    values = len({cost.value for cost in costs.costs})
    shown = [name, f"{values}", f"{sensing:.0f}", f"{len(mixed.widths)}", f"{searching:.0f}", str(mixed)]
    return line([*shown, processor()])


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and the processor's seconds, of all threads, that it takes."""
    start = sum(os.times()[:2])
    found = work()
    return found, sum(os.times()[:2]) - start


if __name__ == "__main__":
    main()
