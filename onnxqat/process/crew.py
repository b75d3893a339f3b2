"""Threads of this process that share a piece of work; NumPy and ONNX Runtime release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property, partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """The calling thread, and others beside it.

    Args:
        size: how many there are in all.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Makes all calls at once and returns their results in order, when all are done.

        Raises:
            Exception: what the first of the calls that failed has raised.
        """
        if len(calls) == 1:
            return [calls[0]()]
        others = [self._pool.submit(call) for call in calls[1:]]
        try:
            first = calls[0]()
        finally:
            wait(others)  # whoever catches the error finds nobody still at work on the arrays
        return [first, *(other.result() for other in others)]

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The function's results for all items, in their order; each thread takes its share of them."""
        shares = [items[number :: self.size] for number in range(min(self.size, len(items)))]
        results: dict[int, Result] = {}
        for number, found in enumerate(self([partial(_each, function, share) for share in shares]) if shares else []):
            results.update(zip(range(number, len(items), self.size), found, strict=True))
        return [results[number] for number in range(len(items))]

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(self.size - 1, 1), "onnxqat")


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
