"""Results of runs, kept as they come in a file of the repository, so that a run on another day adds to them."""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

from onnxqat.process.processor import processor
from tools.benchmark_few_bits.task import Task

ROOT = Path(__file__).parents[2]
KEPT = Path(__file__).with_name("results.json")

#: What came of each stage of a run, `ptq` and `qat`: the fields of `Judged`, and the `processor` it ran on.
Result = dict[str, dict[str, Any]]


class Results:
    """Results by task.

    Args:
        path: file of them; several processes may add to it at the same time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, task: Task) -> Result | None:
        """What came of a task, if it has run."""
        return self._read().get(task.key)

    def run(self, task: Task, python: str) -> Result:
        """Runs a task in a process of this interpreter, unless it has run."""
        found = self.get(task)
        if found is None:
            found = {stage: {**one, "processor": processor()} for stage, one in _run(task, python).items()}
            self._add(task, found)
        return found

    def _add(self, task: Task, result: Result) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            written = self._path.with_suffix(".new")
            written.write_text(json.dumps({**self._read(), task.key: result}, indent=1))
            written.replace(self._path)

    def _read(self) -> dict[str, Result]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}


def _run(task: Task, python: str) -> Result:
    command = [python, "-m", "tools.benchmark_few_bits.process", task.key]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task.key}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))
