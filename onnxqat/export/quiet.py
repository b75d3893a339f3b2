"""Silences the frameworks during an export; the user gets one line."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from onnxqat.errors import short_reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the exporters' warnings and log lines: they concern the exporters themselves, and are pages long."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def reason(error: BaseException) -> str:
    """Returns a framework's own reason, one line of at most 200 characters."""
    plain = re.sub(r"\x1b\[\d+m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [type(error).__name__]
    for line, following in itertools.pairwise(lines):
        # Keras names the layer on a line of its own, and then says the reason.
        if layer := re.search(r"Exception encountered when calling (\w+)\.call\(\)", line):
            return short_reason(Exception(f"{layer[1]}: {following}"))
    # TensorFlow begins with a traceback under this heading.
    return short_reason(Exception(lines[-1] if lines[0] == "in user code:" else lines[0]))


@contextlib.contextmanager
def no_printing(descriptor: int = 1) -> Iterator[None]:
    """Suppresses what C++ code prints to a stream: 1, standard output; 2, standard error."""
    (sys.stdout if descriptor == 1 else sys.stderr).flush()
    with Path(os.devnull).open("w") as nowhere:
        terminal = os.dup(descriptor)
        os.dup2(nowhere.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(terminal, descriptor)
            os.close(terminal)
