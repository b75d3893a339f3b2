"""The core of the suite runs without frameworks, and says where it cannot run."""

import re

import pytest

from tools import core

FRAMEWORK = re.compile(r"^(?:import|from) (?:onnxqat\.)?(?:torch|tensorflow|keras|openvino)", re.M)


@pytest.mark.parametrize("path", core.CORE)
def test_files_of_the_core_are_there_and_need_no_framework(path):
    assert not FRAMEWORK.search((core.ROOT / path).read_text())


def test_a_python_that_cannot_be_had_is_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr(core, "environment", lambda version: None)
    assert core.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "core: no Python 3.10 is here, and uv cannot fetch it; not run there",
        "core: no Python 3.14 or 3.13 is here, and uv cannot fetch it; not run there",
    ]
