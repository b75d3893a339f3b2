"""The one door to what users name as outputs: files, links, devices, pipes, and "-" for standard output.

A regular file appears whole or not at all: it is made in a folder beside it, forced to the disk and renamed. Links are followed;
devices and pipes are written to. A file of another kind is not overwritten, nor is an input, nor a file that holds a part of it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

from onnxqat.errors import InputError
from onnxqat.graph.temporary import beside

PathLike = str | os.PathLike[str]

#: Behind the name of a file: the file beside it that holds what is too large for it.
DATA = ".data"


def _alone(_: Path) -> list[Path]:
    return []


@dataclass(frozen=True)
class Kind:
    """A kind of file; only a file of the same kind, or an empty one, is overwritten.

    Attributes:
        name: as messages call it, with its article.
        recognizes: whether a file that is not empty is of this kind.
        text: whether it may be shown on a terminal.
        parts: the other files that hold parts of a file, if that one is there and of this kind.
    """

    name: str
    recognizes: Callable[[Path], bool]
    text: bool = True
    parts: Callable[[Path], Iterable[Path]] = _alone


class Nowhere(TextIOWrapper):
    """Stands for a standard stream that the process was started without: printed text may get lost in it, results must not."""


def is_standard_output(path: PathLike) -> bool:
    """Whether the path is "-", or a name of whatever standard output goes to, as /dev/stdout is."""
    if os.fspath(path) == "-":
        return True
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))  # noqa: PTH116  (a path or a string)
    except (OSError, ValueError, AttributeError):
        return False


def is_stream(path: PathLike) -> bool:
    """Whether what is written to the path is no file: standard output, a device or a pipe."""
    found = _stat(path)
    return is_standard_output(path) or (found is not None and not stat.S_ISREG(found.st_mode))


def check_all(outputs: Iterable[tuple[PathLike | None, Kind]], inputs: Iterable[PathLike | None] = ()) -> None:
    """Refuses outputs that cannot be written, before long work: each alone, one that is an input, two that are one.

    Args:
        outputs: path and kind of each; None where none is asked for.
        inputs: paths that are read; what names no file does not count.

    Raises:
        InputError: an output cannot be written, or would destroy something.
    """
    given = [path for path in inputs if path is not None]
    seen: list[PathLike] = []
    for path, kind in outputs:
        if path is None:
            continue
        check(path, kind)
        if any(_is_same(path, other) for other in given):
            raise InputError(f"{path}: is an input of this call; choose another path for what is written")
        if any(_is_same(path, other) for other in seen):
            raise InputError(f"{path}: is named for two outputs; choose another path for one of them")
        data = _data(path)
        if any(_is_same(data, part) for other in given if data.exists() for part in kind.parts(Path(other))):
            raise InputError(f"{path}: {data.name} beside it is data of an input of this call; choose another path")
        seen.append(path)


def check_present(path: PathLike) -> None:
    """Raises InputError if there is no such file to read."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the path")


def check(path: PathLike, kind: Kind) -> None:
    """Raises InputError if nothing of this kind can be written to `path`."""
    if is_standard_output(path):
        if isinstance(sys.stdout, Nowhere) and os.fspath(path) != os.devnull:
            raise InputError(f"{path}: standard output is closed; open it, or name a file")
        if not kind.text and sys.stdout is not None and sys.stdout.isatty():
            raise InputError(
                f"{path}: {kind.name} is not text for a terminal; redirect standard output, or name a file"
            )
        return
    found = _stat(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        _check_special(path, found)
        return
    target = _target(path)
    if not target.parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist; create it or choose another path")
    if found is not None and not os.access(target, os.W_OK):
        raise InputError(f"{path}: cannot be written (Permission denied); choose another path")
    if found is not None and found.st_size and not kind.recognizes(target):
        raise InputError(f"{path}: exists and is not {kind.name}; remove it, or choose another path")
    with _explained(path), tempfile.TemporaryFile(dir=target.parent):
        pass


def write(path: PathLike, kind: Kind, make: Callable[[Path], object]) -> None:
    """Writes the file that `make` creates at the path that it is given, and the files that it creates beside it.

    Raises:
        InputError: the path cannot be written.
    """
    check(path, kind)
    with _explained(path):
        if is_stream(path):
            _pour(path, make)
        else:
            _replace(_target(path), kind, make)


def write_text(text: str, path: PathLike, kind: Kind) -> None:
    """Writes text, in UTF-8, with a line end behind it."""
    write(path, kind, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def appending(path: PathLike, kind: Kind) -> TextIO:
    """A text file to append to.

    Raises:
        InputError: the path cannot be written.
    """
    check(path, kind)
    with _explained(path):
        if is_standard_output(path):
            return open(_descriptor(), "w", encoding="utf-8", closefd=False)
        return Path(path).open("a", encoding="utf-8")


def workplace() -> AbstractContextManager[Path]:
    """Temporary folder in the system's own; folders that killed processes left there are removed."""
    return beside(Path(tempfile.gettempdir()) / "onnxqat")


def _stat(path: PathLike) -> os.stat_result | None:
    """Returns the status of the file at the end of all links; None if there is none."""
    try:
        return os.stat(path)  # noqa: PTH116  (a path or a string)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); choose another path") from error


def _check_special(path: PathLike, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: is a folder; name a file")
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        raise InputError(f"{path}: is neither a file, nor a pipe, nor a device that takes bytes; name a file")
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: cannot be written (Permission denied); choose another path")


def _is_same(path: PathLike, other: PathLike) -> bool:
    """Whether two names are one file, by links of both kinds too; a device or a pipe may serve several."""
    if is_standard_output(path) and is_standard_output(other):
        return True
    if is_stream(path):
        return False
    try:
        if os.path.samefile(path, other):  # noqa: PTH121  (paths or strings)
            return True
    except (OSError, ValueError):
        pass
    return _target(path) == _target(other)


def _target(path: PathLike) -> Path:
    """The file itself, behind all links; it need not be there."""
    return Path(os.path.realpath(path))


def _data(path: PathLike) -> Path:
    return Path(f"{_target(path)}{DATA}")


def _replace(target: Path, kind: Kind, make: Callable[[Path], object]) -> None:
    with beside(target) as made:
        rights = (target if target.exists() else made).stat().st_mode & 0o666
        make(made / target.name)
        places = {file: target if file.name == target.name else _beside(target, kind, file) for file in made.iterdir()}
        for file, place in sorted(places.items(), key=lambda pair: pair[1] == target):
            file.chmod(rights)
            _to_disk(file)
            file.replace(place)
    _to_disk(target.parent)


def _beside(target: Path, kind: Kind, file: Path) -> Path:
    """Returns where a file made beside the target goes, by the same rules; it may only replace a part of the old file."""
    place = target.with_name(file.name)
    before = list(kind.parts(target))
    check(place, Kind(f"data of {target.name}", lambda found: any(_is_same(found, part) for part in before)))
    if is_stream(place):
        raise InputError(f"{place}: is no file, so that it cannot hold data of {target.name}; choose another path")
    return _target(place)


def _pour(path: PathLike, make: Callable[[Path], object]) -> None:
    """Writes to a device, a pipe or standard output; content is made elsewhere first, so a failure writes nothing."""
    with workplace() as folder:
        made = folder / "output"
        make(made)
        if len(list(folder.iterdir())) > 1:
            raise InputError(f"{path}: the model is too large for one piece; name a file")
        with made.open("rb") as content, _sink(path) as sink:
            shutil.copyfileobj(content, sink)


def _sink(path: PathLike) -> IO[bytes]:
    if not is_standard_output(path):
        return Path(path).open("wb")
    # a separate stream: output that a closed pipe refuses is not tried again when the process ends
    return open(_descriptor(), "wb", closefd=False)


def _descriptor() -> int:
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    sys.stdout.flush()
    return sys.stdout.fileno()


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); choose another path") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_json(path: Path) -> bool:
    return _parses(path.read_bytes())


def _begins_as_json_lines(path: Path) -> bool:
    with path.open("rb") as file:
        return _parses(file.readline())


def _parses(content: bytes) -> bool:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict)


JSON = Kind("a JSON file", _is_json)
JSON_LINES = Kind("a file of JSON lines", _begins_as_json_lines)
