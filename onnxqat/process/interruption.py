"""Signals that end a process: Ctrl-C, SIGTERM and SIGHUP alike raise `Interrupted`, but not while a step is half taken."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Seconds within which a second signal counts as the first one, as `timeout` sends two at once.
AT_ONCE = 2.0

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """A signal asks the process to end.

    Attributes:
        number: which signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status of a process that it ends."""
        return 128 + self.number

    @property
    def cause(self) -> str:
        """The signal as users know it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name


class Raiser:
    """Handles signals: raises `Interrupted`; a signal that follows at once is the same one.

    Attributes:
        raised: the last that was raised.
    """

    def __init__(self) -> None:
        self.raised: Interrupted | None = None
        self._last = -AT_ONCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; called by Python."""
        now = time.monotonic()
        again = now - self._last < AT_ONCE
        self._last = now
        if not again:
            self.raised = Interrupted(number)
            raise self.raised

    def lost(self, unraisable: Any) -> bool:
        """Whether an error that Python ignores, as in callbacks of weak references, is a signal's; then it is sent again soon."""
        if unraisable.exc_value is not self.raised or self.raised is None:
            return False
        self._last = -AT_ONCE
        threading.Timer(0.05, os.kill, [os.getpid(), self.raised.number]).start()
        return True


@contextmanager
def raising() -> Iterator[Raiser]:
    """Lets the signals raise `Interrupted` in the main thread; those that are ignored stay so, as nohup wants it."""
    handler, replaced, hook = Raiser(), {}, sys.unraisablehook
    try:
        sys.unraisablehook = lambda unraisable: None if handler.lost(unraisable) else hook(unraisable)
        for number in SIGNALS if _is_main() else ():
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                replaced[number] = signal.signal(number, handler)
        yield handler
    finally:
        sys.unraisablehook = hook
        for number, before in replaced.items():
            signal.signal(number, before)


@contextmanager
def held() -> Iterator[None]:
    """Makes signals that have a handler wait until its block is done; one that is sent again later does not wait."""
    handlers: dict[int, Handler] = {}
    if _is_main():
        handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    waiting: dict[int, float] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - waiting.setdefault(number, time.monotonic()) > AT_ONCE:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            handlers[number](number, None)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
