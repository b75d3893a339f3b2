"""Rank of this process among several, as its launcher says; the processes themselves join in `distributed`."""

from __future__ import annotations

import os
import signal
import time


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Number of this process before it has joined the others; 0 where it was started alone."""
    return int(os.environ["RANK"]) if launched() else 0


def in_words(message: str) -> str:
    """An error as standard error shows it, with the number of the process unless it is the first."""
    return f"error: process {rank()}: {message}" if rank() else f"error: {message}"


def give_way() -> None:
    """Waits before this process reports its error: if the first process has the same one, torchrun ends this one meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(5)
