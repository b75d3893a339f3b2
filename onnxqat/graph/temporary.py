"""Folders in which files are written before they are renamed, and what killed processes leave of them."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new folder beside a file that is to be written, removed at the end with whatever is still in it."""
    clear(path.parent, glob.escape(path.name))
    with ExitStack() as held:
        folder = _claimed(path, held)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _claimed(path: Path, held: ExitStack) -> Path:
    """A new folder and its lock; another one if a process that clears was faster than the lock."""
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        folder.mkdir()
        try:
            held.enter_context(_locked(folder, wait=True))
        except FileNotFoundError:
            continue
        except OSError:
            return folder  # a file system without locks, where nobody clears
        if folder.exists():
            return folder


def clear(folder: Path, names: str) -> None:
    """Removes what killed processes left beside files of such names (a glob pattern), except what is being written."""
    for left in folder.glob(f".{names}.*.tmp"):
        try:
            with _locked(left):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # another process writes there, or has just finished


if sys.platform == "win32":

    @contextmanager
    def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
        """Open files cannot be removed there, so a folder needs no lock."""
        yield

else:
    import fcntl

    @contextmanager
    def _locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
        """Holds a lock, which ends with the process; OSError where another process holds it, unless told to wait."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
