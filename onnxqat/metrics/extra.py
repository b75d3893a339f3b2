"""Libraries that single metrics need, which the extra `metrics` brings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnxqat.errors import MissingExtraError


def optional(module: str, package: str, what: str) -> Any:
    """A module of a library that may not be installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{what}: {package} is not installed; run `pip install 'onnxqat[metrics]'`") from error
