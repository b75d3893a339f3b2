"""Progress of long work: a bar on a terminal, one plain line elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from rich.progress import track as rich_track

from onnxqat.process.launch import rank
from onnxqat.terminal.plain import Terminal

T = TypeVar("T")

console = Terminal(stderr=True)


def duration(seconds: float) -> str:
    """A time as people say it: seconds below 2 minutes, minutes below 2 hours."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Iterates with a progress bar where standard error is a terminal, silently elsewhere (the stages log one line each)."""
    if not sys.stderr.isatty() or rank() > 0:
        yield from items
        return
    total = length_hint(items)  # 0 where the source does not tell
    yield from rich_track(items, what, total=total or None, console=console, transient=True)
