import sys

import pytest

from onnxqat.data import sources
from onnxqat.graph import io
from onnxqat.terminal import progress
from onnxqat.terminal.plain import Terminal
from tests.models import batches, model

NET = model("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")


@pytest.fixture
def terminal(monkeypatch):
    """Standard error is a terminal; what is drawn on it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "console", Terminal(force_terminal=True, width=80, record=True))
    return progress.console


@pytest.mark.parametrize("told", [True, False], ids=["known length", "unknown length"])
def test_a_bar_shows_on_a_terminal(terminal, told):
    items = batches(NET)
    source = sources.batches(items if told else (batch for batch in items), io.load(NET))
    assert len(list(progress.track(source, "calibrate"))) == len(items)
    assert "calibrate" in terminal.export_text()


def test_nothing_shows_elsewhere(capsys):
    assert list(progress.track([1, 2], "calibrate")) == [1, 2]
    assert capsys.readouterr() == ("", "")
