"""Two hundred broken inputs: no process dies or hangs, no traceback, no invalid output (`tools/fuzz.py` runs any number)."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_broken_input_ends_in_one_line_or_in_a_valid_model():
    """In a process of its own, since it forks: no thread of another test's may be running there."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "tools/fuzz.py", "--cases", "200", "--seed", "0"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert "200 cases, 0 failed" in result.stdout, result.stdout + result.stderr[-2000:]
