"""Processes that tests start: whatever happens, none outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen]:
    """A process, given what `Popen` takes; at the end it is gone, and with it all that it started."""
    with subprocess.Popen(list(map(str, command)), **options) as process:
        try:
            yield process
        finally:
            for number in [*descendants(process.pid), process.pid] if process.poll() is None else ():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def descendants(process: int) -> list[int]:
    """The processes that one has started, those that they have started, and so on; none where the system does not tell."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for number in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == number]
    return found[1:]
