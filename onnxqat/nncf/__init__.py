"""Reads a legacy NNCF configuration (the JSON schema of release 2.14) as a configuration of this package.

Every key is honoured, warned of or refused by name. Scopes become `Select(scope=…)`, which names nodes by NNCF's names, or
`Select(pattern=…)` for a plain regular expression.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from onnxqat import settings
from onnxqat.config_parts import shown, worded
from onnxqat.errors import InputError
from onnxqat.nncf.schema import Root, ignored
from onnxqat.nncf.translate import translate
from onnxqat.nncf.unhonoured import ACCELERATORS, REFUSED

log = logging.getLogger(__name__)

C = TypeVar("C")


def read(source: str | Path | dict[str, Any], build: Callable[..., C]) -> C:
    """The configuration of a file (JSON, with comments if need be) or of a dict.

    Args:
        source: the file or dict.
        build: makes a configuration from values by key (`Config`).

    Raises:
        InputError: the file cannot be read; a key is unknown or not honoured; a value has the wrong type or is out of range.
    """
    where = f"{source}: NNCF configuration: " if isinstance(source, str | Path) else "NNCF configuration: "
    try:
        values = _load(Path(source)) if isinstance(source, str | Path) else source
        root = Root.model_validate(values)
        built = build(**translate(root))
    except ValidationError as error:
        message = "; ".join(_shown(problem) for problem in error.errors())
    except InputError as error:
        message = str(error)
    else:
        for warning in _warnings(root):
            log.warning("%s%s", where, warning)
        return built
    raise InputError(f"{where}{message}")


def describes(path: Path) -> bool:
    """Whether the file is a configuration of NNCF rather than one of ours."""
    try:
        values = _load(path)
    except InputError:
        return False
    return isinstance(values, dict) and "compression" in values


def _warnings(root: Root) -> Iterator[str]:
    """Warnings of what has no effect here."""
    if root.foreign:
        yield f"keys that are not NNCF's own are ignored: {', '.join(root.foreign)}"
    if without := ignored(root):
        yield f"keys that are not honoured: {'; '.join(f'{name} ({way})' for name, way in without.items())}"
    if root.target_device in ACCELERATORS:
        yield (
            f"target_device: {root.target_device!r} has no table of integer kernels here; quantizers are placed for "
            "OpenVINO on a CPU"
        )


def _load(path: Path) -> Any:
    try:
        return settings.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); check the path") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # numbers of too many digits, brackets in brackets
        raise InputError(f"is not JSON ({shown(error)}); fix the file") from error


def _shown(problem: Any) -> str:
    path = [str(part) for part in problem["loc"] if part not in ("one", "many")]
    where, message = ".".join(path), worded(problem)
    if problem["type"] == "extra_forbidden":
        if path[-1] in REFUSED:
            return f"{where}: is not honoured; {REFUSED[path[-1]]}"
        return f"{where}: no such key; check its spelling, or remove it"
    if problem["type"] in ("value_error", "missing"):
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (is {shown(problem['input'])})"
