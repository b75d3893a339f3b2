"""Checks onnxqat's gradients on ONNX's own operator tests and prints, operator by operator, what is right.

    python tools/gradient_coverage.py [--only OPERATOR ...] [--engine runtime] [--verbose]

Each case runs in a child process, so that a crash costs only that case.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import get_args

import numpy as np
import onnx
from onnx import numpy_helper

from onnxqat.names import EngineName
from onnxqat.training.gradients import gradients
from tools.gradient_check.check import Verdict, check_gradients

NEWEST_OPSET, NEWEST_IR = 21, 10
#: Inputs that are settings, or decide shapes or axes: given as initializers, as models have them.
_SHAPING = {"DFT": (2,), "Dropout": (1,), "OneHot": (1,), "Range": (1,), "Resize": (1, 2), "Upsample": (1,)}
_TELLING = ("refused", "wrong", "unchecked")


@dataclass(frozen=True)
class Case:
    """One of ONNX's node tests.

    Attributes:
        name: its name in the onnx package.
        operator: the operator it tests; `expanded` cases test the operator's function body.
        model: the model, at opset 21 or below where the operator exists there.
        feeds: inputs by name.
        expected: outputs by name.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


@cache
def node_cases() -> dict[str, list[Case]]:
    """Returns ONNX's node tests by operator; those of function bodies are under `<operator> (expanded)`.

    Operators of other domains, or newer than what the runtime loads, are left out, function bodies included.
    """
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    operators = {case.name: case.model.graph.node[0].op_type for case in collected if "_expanded" not in case.name}
    cases: dict[str, list[Case]] = defaultdict(list)
    for case in collected:
        if not onnx.defs.has(operators.get(_base(case.name), ""), max_inclusive_version=NEWEST_OPSET):
            continue
        operator = operators.get(case.name) or f"{operators.get(_base(case.name), '?')} (expanded)"
        cases[operator].extend(_case(case, operator))
    return dict(cases)


def _base(name: str) -> str:
    return name.partition("_expanded")[0]


def _case(case: object, operator: str) -> Iterator[Case]:
    model = at_opset_21(case.model)  # type: ignore[attr-defined]
    if model is None or not case.data_sets:  # type: ignore[attr-defined]
        return
    inputs, outputs = case.data_sets[0]  # type: ignore[attr-defined]
    feeds = dict(zip((value.name for value in model.graph.input), map(_array, inputs), strict=False))
    expected = dict(zip((value.name for value in model.graph.output), map(_array, outputs), strict=False))
    _fix_shaping_inputs(model, feeds)
    yield Case(case.name, operator, model, feeds, expected)  # type: ignore[attr-defined]


def _fix_shaping_inputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    node = model.graph.node[0]
    names = [node.input[i] for i in _SHAPING.get(node.op_type, ()) if i < len(node.input) and node.input[i]]
    for value in [value for value in model.graph.input if value.name in names]:
        model.graph.input.remove(value)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(feeds.pop(value.name)), value.name))


def _array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value  # type: ignore[return-value]


def at_opset_21(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Returns the model in a form that the runtime loads, None if an operator is newer than opset 21."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    lowered.ir_version = min(lowered.ir_version, NEWEST_IR)
    for imported in lowered.opset_import:
        if imported.domain == "" and imported.version > NEWEST_OPSET:
            imported.version = NEWEST_OPSET
    try:
        onnx.checker.check_model(lowered)
    except onnx.checker.ValidationError:
        return None
    return lowered


def verdicts(cases: Sequence[Case], engine: EngineName = "auto") -> list[Verdict]:
    """Checks each case in a child process; after a crash the next case gets a new child."""
    found: list[Verdict] = []
    context = multiprocessing.get_context("fork")
    while len(found) < len(cases):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(cases[len(found) :], theirs, engine))
        child.start()
        theirs.close()
        try:
            while len(found) < len(cases):
                found.append(ours.recv())
        except EOFError:
            child.join()
            if len(found) < len(cases):
                found.append(Verdict("wrong", f"the process crashed (exit code {child.exitcode})"))
        child.join()
    return found


def _work(cases: Sequence[Case], connection: object, engine: EngineName) -> None:
    compute = partial(gradients, engine=engine)
    for case in cases:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict = check_gradients(case.model, case.feeds, case.expected, compute=compute)
        except Exception as error:
            verdict = Verdict("wrong", f"{type(error).__name__}: {error}")
        connection.send(verdict)  # type: ignore[attr-defined]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status is 1 if any case is wrong or could not be checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="check only these operators")
    parser.add_argument("--verbose", action="store_true", help="print each case that is not correct")
    parser.add_argument("--engine", default="auto", choices=get_args(EngineName), help="whose kernels are used")
    parser.add_argument("--processes", type=int, default=2, help="how many operators to check at the same time")
    options = parser.parse_args(arguments)
    for noisy in ("onnx_ir", "onnxqat"):  # the latter says which models it upgrades
        logging.getLogger(noisy).setLevel(logging.ERROR)
    start = time.monotonic()
    cases = node_cases()
    operators = sorted(options.only or cases)
    unknown = [name for name in operators if name not in cases]
    if unknown:
        parser.error(f"ONNX has no tests of {', '.join(unknown)}")
    results = {}
    with ThreadPoolExecutor(options.processes) as pool:
        found = pool.map(lambda operator: verdicts(cases[operator], options.engine), operators)
        for operator, verdict in zip(operators, found, strict=True):
            results[operator] = verdict
            print_operator(operator, cases[operator], verdict, verbose=options.verbose)
    print_totals(results)
    print(f"{time.monotonic() - start:.0f} s")
    return int(any(v.outcome in ("wrong", "unchecked") for found in results.values() for v in found))


def print_operator(operator: str, cases: Sequence[Case], found: Sequence[Verdict], *, verbose: bool) -> None:
    """Prints the counts of one operator and the reasons; each case that is not correct where `verbose`."""
    counts = Counter(verdict.outcome for verdict in found)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    reasons = sorted({verdict.reason for verdict in found if verdict.outcome in _TELLING})
    print(f"{operator:32} {summary:40} {' | '.join(reasons)[:300]}", flush=True)
    if verbose:
        for case, verdict in zip(cases, found, strict=True):
            if verdict.outcome in _TELLING:
                print(f"    {case.name}: {verdict.outcome}: {verdict.reason[:400]}", flush=True)


def print_totals(results: dict[str, list[Verdict]]) -> None:
    """Prints how many operators are right, and how many cases: `none` have no float input or output."""
    own = {operator: found for operator, found in results.items() if "(expanded)" not in operator}
    correct = [operator for operator, found in own.items() if any(v.outcome == "correct" for v in found)]
    all_correct = [o for o in correct if all(v.outcome in ("correct", "none") for v in own[o])]
    wrong = [operator for operator, found in results.items() if any(v.outcome == "wrong" for v in found)]
    print(
        f"\noperators with correct cases: {len(correct)}, of them every case: {len(all_correct)}; wrong: {len(wrong)} {wrong}"
    )
    print("cases:", dict(Counter(v.outcome for found in results.values() for v in found)))


if __name__ == "__main__":
    sys.exit(main())
