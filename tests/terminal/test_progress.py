import os
import re
import subprocess
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


SCRIPT = """
import logging, time
from onnxqat.terminal.plain import log_plainly
from onnxqat.terminal.progress import track
log_plainly(logging.INFO)
for item in track([1, 2, 3], "train"):
    time.sleep(0.2)
    logging.getLogger("onnxqat.x").info("epoch %d/3: train loss %s", item, "0.5, " * 12)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_line_of_the_log_stands_above_the_bar_by_itself():
    import pty

    screen, tty = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=tty, stdout=tty, env={**os.environ, "TERM": "xterm"}):
        os.close(tty)
        drawn = b""
        while chunk := _read(screen):
            drawn += chunk
    os.close(screen)
    for number in (1, 2, 3):
        before, line, _ = drawn.partition(b"epoch %d/3" % number)
        assert line
        assert re.search(rb"(\n|\x1b\[2K)$", before), before[-40:]
    assert b"train" in drawn


def _read(screen):
    try:
        return os.read(screen, 65536)
    except OSError:  # what Linux says where the other end is closed
        return b""
