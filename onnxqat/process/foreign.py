"""Calls the user's code: whatever it raises, an exit of the process included, becomes one line that names it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxqat.errors import InputError, OnnxqatError

#: Prefix of the names of modules that another module hides.
OWN_PREFIX = "_onnxqat_user_"


@contextmanager
def guarded(what: str, remedy: str = "fix it") -> Iterator[None]:
    """Turns errors of the user's code into InputError; errors of this package and Ctrl-C pass."""
    try:
        yield
    except OnnxqatError:
        raise
    except (Exception, SystemExit) as error:
        if is_own_exit(error):
            raise
        raise InputError(f"{what} ({described(error)}); {remedy}") from error


def is_own_exit(error: BaseException) -> bool:
    """Whether a signal that this package handles ends the process; the user's code raises SystemExit itself."""
    return isinstance(error, SystemExit) and type(error) is not SystemExit


def described(error: BaseException) -> str:
    """Class and message of an error in one line; a class of the user's own may fail at that too."""
    if isinstance(error, SystemExit):
        return f"it ends the process, with status {error.code!r}"
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def each(items: Iterable[Any], what: str) -> Iterator[Any]:
    """The items of the user's iterable."""
    with guarded(f"{what}: the loader fails"):
        iterator = iter(items)
    while True:
        with guarded(f"{what}: the loader fails"):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def imported(name: str) -> ModuleType:
    """The module of that name: the one in the current folder first; what it imports itself is looked for there last.

    Raises:
        ModuleNotFoundError: there is none.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    top, _, rest = name.partition(".")
    spec = PathFinder.find_spec(top, [here]) if top else None
    if spec is None or spec.origin is None or not _is_hidden(top, spec, here):
        return importlib.import_module(name)
    own = OWN_PREFIX + top
    if getattr(sys.modules.get(own), "__file__", None) != spec.origin:
        _load(own, spec)
    return importlib.import_module(f"{own}.{rest}" if rest else own)


def _is_hidden(top: str, found: ModuleSpec, here: str) -> bool:
    """Whether a module of the same name, loaded or installed, would be taken for the one in the current folder."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        return not _is_same_file(getattr(loaded, "__file__", None), found.origin)
    elsewhere = PathFinder.find_spec(top, [entry for entry in sys.path if entry != here])
    return top in sys.builtin_module_names or (
        elsewhere is not None and elsewhere.origin is not None and not _is_same_file(elsewhere.origin, found.origin)
    )


def _is_same_file(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and os.path.realpath(one) == os.path.realpath(other)


def _load(name: str, found: ModuleSpec) -> None:
    """Loads the module under a name of its own, so that those who mean the other one still get that."""
    spec = importlib.util.spec_from_file_location(
        name, str(found.origin), submodule_search_locations=found.submodule_search_locations
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
