"""The core of the suite runs without frameworks, and says where it cannot run."""

import re
import subprocess

import pytest

from tools import core

FRAMEWORK = re.compile(r"^(?:import|from) (?:onnxqat\.)?(?:torch|tensorflow|keras|openvino)", re.M)


@pytest.mark.parametrize("path", core.CORE)
def test_files_of_the_core_are_there_and_need_no_framework(path):
    assert not FRAMEWORK.search((core.ROOT / path).read_text())


def test_a_python_that_cannot_be_had_is_named_with_the_reason_and_left_out(monkeypatch, tmp_path, capsys):
    failed = subprocess.CompletedProcess([], 2, b"", b"error: no interpreter found\nhint: install one\n")
    monkeypatch.setattr(core, "_uv", lambda *arguments: failed)
    monkeypatch.setattr(core, "ROOT", tmp_path)
    assert core.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"core: Python {version} cannot be had, so nothing is run there (error: no interpreter found)"
        for version in ("3.10", "3.14", "3.13")
    ]


@pytest.mark.parametrize(
    ("training", "runs"),
    [({"3.10"}, ["3.10 auto", "3.13 auto"]), ({"3.10", "3.13"}, ["3.10 auto", "3.13 auto", "3.10 runtime"])],
    ids=["each has one", "the newest trains too"],
)
def test_both_engines_run_and_none_twice(training, runs, monkeypatch):
    done = []
    monkeypatch.setattr(core, "environment", lambda version: None if version == "3.14" else version)
    monkeypatch.setattr(core, "trains", training.__contains__)
    monkeypatch.setattr(core, "fails", lambda python, engine: bool(done.append(f"{python} {engine}")))
    core.main([])
    assert done == runs
