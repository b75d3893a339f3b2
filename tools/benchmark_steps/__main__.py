"""Prints the table, and with `--write` writes it into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import tools.benchmark_steps
from onnxqat.process.processor import processor
from tools.benchmark_steps.subjects import IMAGES, OTHERS
from tools.benchmark_steps.table import HEADER, Comparison
from tools.readme import BENCHMARKS, replace_section


def main() -> None:
    """Measures the networks asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark_steps", description=tools.benchmark_steps.__doc__)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="how titles of networks begin; all unless given")
    parser.add_argument("--threads", type=int, default=2, help="number of threads beside one")
    parser.add_argument("--turns", type=int, default=5, help="timed steps of each")
    parser.add_argument(
        "--cpu", action="store_true", help="time of the processors: steadier, and blind to gain of threads"
    )
    parser.add_argument("--nncf-python", default="", help="interpreter of an environment with NNCF")
    parser.add_argument("--runtime-python", default="", help="interpreter with an onnxruntime that cannot train")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md too")
    asked = parser.parse_args()
    clock = "cpu" if asked.cpu else "wall"
    interpreters = asked.nncf_python, asked.runtime_python
    others = (str(Path(python).absolute()) if python else "" for python in interpreters)
    comparison = Comparison(asked.threads, asked.turns, clock, *others)
    loads = [os.getloadavg()[0]]
    lines = [HEADER.format(threads=asked.threads, stock=_version(asked.runtime_python))]
    for subject in (*IMAGES, *OTHERS):
        if not asked.names or subject.title.startswith(tuple(asked.names)):
            lines.append(comparison.row(subject))
            loads.append(os.getloadavg()[0])
            print(lines[-1], flush=True)
    after = ", ".join(f"{one:.1f}" for one in loads[1:])
    measured = f"Measured on {processor()}; load {loads[0]:.1f} before, {after} after each network."
    table = "\n".join([*lines, "", measured])
    print(f"\n{table}")
    if asked.write:
        replace_section("steps", table, BENCHMARKS)


def _version(python: str) -> str:
    ask = "import onnxruntime; print(onnxruntime.__version__)"
    return (
        subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip() if python else ""
    )


if __name__ == "__main__":
    main()
