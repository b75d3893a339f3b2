"""Every operator that has a gradient, on a few of ONNX's own tests of it; `tools/gradient_coverage.py` runs all of them."""

import functools
import logging
import os

import numpy as np
import pytest

from onnxqat import gradients
from onnxqat.autodiff.rule import Refused, Stopped
from onnxqat.autodiff.rules.table import TABLE
from tests.autodiff.kernels import WITH_KERNELS
from tools import gradient_coverage
from tools.gradient_check.check import Verdict, check_gradients
from tools.gradient_coverage import node_cases

LARGEST = 20_000  # elements of all inputs: evaluating larger ones in Python takes seconds
#: ONNX has no test of a float case of these that the runtime loads; the tests of their families compare with torch.
WITHOUT_CASES = {"GlobalLpPool", "If", "Swish", "Trilu"}
DIFFERENTIABLE = sorted(name for (_, name), rule in TABLE.items() if not isinstance(rule, Stopped | Refused))


@pytest.fixture(scope="module")
def cases():
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    return node_cases()


def few(found):
    """First, middle and last of the small cases in single or double precision."""
    small = [
        case for case in found if is_small([np.asarray(a) for a in case.feeds.values() if not isinstance(a, list)])
    ]
    chosen = [small[0], small[len(small) // 2], small[-1]] if small else []
    return list({case.name: case for case in chosen}.values())


def is_small(arrays):
    return (
        any(a.dtype in (np.float32, np.float64) and a.size for a in arrays) and sum(a.size for a in arrays) <= LARGEST
    )


@pytest.mark.parametrize("operator", [name for name in DIFFERENTIABLE if name not in WITHOUT_CASES])
def test_the_gradient_is_right(operator, cases):
    verdicts = {case.name: check_gradients(case.model, case.feeds, case.expected) for case in few(cases[operator])}
    assert not {name: v.reason for name, v in verdicts.items() if v.outcome in ("wrong", "unchecked")}
    assert "correct" in {verdict.outcome for verdict in verdicts.values()}


@pytest.mark.parametrize("operator", sorted(WITH_KERNELS))
def test_the_gradient_is_right_in_standard_operators(operator, cases):
    compute = functools.partial(gradients, engine="runtime")
    found = {c.name: check_gradients(c.model, c.feeds, c.expected, compute=compute) for c in few(cases[operator])}
    assert not {name: v.reason for name, v in found.items() if v.outcome in ("wrong", "unchecked")}


@pytest.mark.parametrize("operator", sorted(WITHOUT_CASES))
def test_what_is_said_to_lack_cases_lacks_them(operator, cases):
    assert few(cases.get(operator, [])) == []


def test_a_crash_costs_one_case_alone(cases, monkeypatch):
    three = cases["Clip"][:3]
    check = check_gradients

    def crash_on_second(model, *arguments, **named):
        if model is three[1].model:
            os._exit(1)
        return check(model, *arguments, **named)

    monkeypatch.setattr(gradient_coverage, "check_gradients", crash_on_second)
    found = gradient_coverage.verdicts(three)
    assert [verdict.outcome for verdict in found] == ["correct", "wrong", "correct"]
    assert "crashed" in found[1].reason


@pytest.mark.parametrize(("outcome", "status"), [("correct", 0), ("refused", 0), ("wrong", 1), ("unchecked", 1)])
def test_the_exit_status_says_whether_all_is_right(outcome, status, monkeypatch, capsys):
    monkeypatch.setattr(
        gradient_coverage, "verdicts", lambda cases, engine: [Verdict(outcome, "so it is")] * len(cases)
    )
    assert gradient_coverage.main(["--only", "Relu", "Abs"]) == status
    assert f"'{outcome}': 2" in capsys.readouterr().out
