"""Processes that tests start end with them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import descendants, started

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(1000)
"""


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def fails(seen):
    with started([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        seen += [process.pid, *descendants(process.pid)]
        assert seen[1:] == [child]
        raise ZeroDivisionError


def test_a_process_and_its_children_are_gone_after_a_test_that_failed():
    seen = []
    with pytest.raises(ZeroDivisionError):
        fails(seen)
    for _ in range(1000):
        if not any(map(is_alive, seen)):
            return
        time.sleep(0.01)
    pytest.fail("one of them lives on")
