"""Modules that an import would load for nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_out(module: str) -> Iterator[None]:
    """Lets imports fail, with an ImportError, of a module that is not loaded yet; afterwards it can be imported."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # type: ignore[assignment]  # how the import system marks a module that must not be found
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]
