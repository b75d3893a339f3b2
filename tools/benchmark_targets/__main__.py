"""Measures what is asked for and not there yet; see the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import tools.benchmark_targets
from tools.benchmark_targets.measure import FOLDER, measured, measured_own
from tools.benchmark_targets.nets import NETS, WAYS
from tools.benchmark_targets.table import table
from tools.readme import ROOT, replace_section

KEPT = FOLDER / "results.json"
PAGE = ROOT / "docs" / "targets.md"


def main() -> None:
    """Measures, and prints the tables or writes them into the documentation."""
    parser = argparse.ArgumentParser(description=tools.benchmark_targets.__doc__)
    parser.add_argument("--only", nargs="*", metavar="NET/TARGET", help="which rows; default: all")
    parser.add_argument("--python", nargs="*", default=[], metavar="RUNTIME=PYTHON", help="environments of runtimes")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/targets.md")
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


def _steps(only: Sequence[str] | None) -> Iterator[tuple[str, Callable[[str | None], dict[str, Any]], str]]:
    """Key of each result that is asked for, the function that measures it, and its runtime."""
    every = [f"{net}/{way}" for net in NETS for way in WAYS if NETS[net].trained or WAYS[way].pretrained]
    for key in every if only is None else only:
        net, way = key.split("/")
        yield key, partial(measured, net, way), WAYS[way].runtime
        if WAYS[way].own is not None and NETS[net].trained:
            yield f"{key}/own", partial(measured_own, net, way), WAYS[way].runtime


def _kept() -> dict[str, Any]:
    return dict(json.loads(KEPT.read_text())) if KEPT.exists() else {}


if __name__ == "__main__":
    main()
