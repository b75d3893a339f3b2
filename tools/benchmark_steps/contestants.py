"""Processes that take steps in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Contestant:
    """A step to be measured.

    Attributes:
        kind: one of `turns.KINDS`.
        options: of that kind's `step`.
        python: the interpreter; empty: this one.
    """

    kind: str
    options: Mapping[str, Any]
    python: str = ""


@dataclass(frozen=True)
class Times:
    """What a contestant needed.

    Attributes:
        seconds: of each turn.
        peak: of the memory of its process, in MB.
    """

    seconds: NDArray[np.float64]
    peak: float

    @property
    def milliseconds(self) -> float:
        """Of the median turn."""
        return float(np.median(self.seconds)) * 1e3

    def over(self, other: Times) -> float:
        """Time as a multiple of the other's, as the median over turns."""
        return float(np.median(self.seconds / other.seconds))


def in_turn(contestants: Mapping[str, Contestant], folder: Path, turns: int, clock: str) -> dict[str, Times]:
    """Times of all, who take turns; the first turns, in which they allocate and compile, do not count.

    Args:
        contestants: who takes part, by name.
        folder: with the files of a `Subject`.
        turns: number of turns that count.
        clock: "wall" or "cpu".
    """
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_Running(one, folder)) for name, one in contestants.items()}
        for _ in range(2 + turns):
            for name, one in running.items():
                answers[name].append(one.step())
    return {
        name: Times(np.array([answer[clock] for answer in found[2:]]), found[-1]["peak"])
        for name, found in answers.items()
    }


class _Running:
    """The process of a contestant."""

    def __init__(self, contestant: Contestant, folder: Path) -> None:
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        command = [contestant.python or sys.executable, "-m", "tools.benchmark_steps.turns", contestant.kind]
        self._process = subprocess.Popen(
            [*command, str(folder), json.dumps(dict(contestant.options))],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def step(self) -> dict[str, float]:
        """Lets it take a step and returns what it answers."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        print("go", file=pipes[0], flush=True)
        answer = pipes[1].readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit(f"{self._process.args}:\n{self._log.read()[-2000:]}")
        return dict(json.loads(answer))

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        with self._log, self._process as process:
            process.kill()
