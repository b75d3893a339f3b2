"""Memory that this process may still take, by the system and by the control groups (containers) that it is in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: Files of a control group, versions 2 and 1: its limit, what is used of it, and the line of `memory.stat` that can be dropped.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that are free, or None where the system does not tell; `root` is where its files are."""
    found = [_of_system(root), *_of_groups(root)]
    return min((bytes_ for bytes_ in found if bytes_ is not None), default=None)


def _of_system(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows, and not by this name on macOS
        return None


def _of_groups(root: Path) -> Iterator[int | None]:
    mounts = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    paths = {line.split(":", 2)[2] for line in _lines(root / "proc/self/cgroup") if line.count(":") >= 2}
    groups = {parent for path in paths for parent in (PurePosixPath(path), *PurePosixPath(path).parents)}
    for mount in mounts:
        for group in groups | {PurePosixPath("/")}:
            yield from (_of_group(mount / str(group).lstrip("/"), *names) for names in _FILES)


def _of_group(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    most, taken = (next(iter(_lines(folder / name)), "") for name in (limit, used))
    if not most.isdecimal() or not taken.isdecimal():
        return None
    dropped = (line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith(f"{droppable} "))
    return max(int(most) - int(taken) + int(next(dropped, 0)), 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
