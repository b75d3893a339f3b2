"""Standard streams: one that is closed, or that nobody reads, ends no work."""

from __future__ import annotations

import os
import sys

from onnxqat.graph.files import Nowhere


def open_streams() -> None:
    """Gives the process the standard streams that it was started without; characters that they cannot show are escaped.

    A file that is opened later must not get the number of a closed stream: libraries print to numbers.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, Nowhere(os.fdopen(number, "rb" if number == 0 else "wb", closefd=False)))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def close_streams() -> str | None:
    """Writes out what is printed; the reason where that fails, after which nothing more can be printed."""
    failure = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            failure = error.strerror or str(error)
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes once more at its end
    return failure
