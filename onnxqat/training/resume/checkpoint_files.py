"""Files that are written whole or not at all: tensors and JSON text in a safetensors file, with a checksum of both."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onnxqat.errors import InputError, OnnxqatError
from onnxqat.graph import files
from onnxqat.graph.temporary import clear
from onnxqat.process.foreign import described

log = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[Any]]
Facts = dict[str, Any]

#: Names count up, so that the newest is the one with the highest number whatever a clock says.
_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")


class _Stored(Mapping[str, NDArray[Any]]):
    """The tensors of a file, each read when it is asked for: all at once may take more memory than the run itself."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, framework="np") as file:
            tensor: NDArray[Any] = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class DamagedError(InputError):
    """A file is not what was written: cut off, changed, or never a checkpoint."""


def write(path: Path, tensors: Mapping[str, NDArray[Any]], facts: Facts) -> None:
    """Writes beside the path, syncs to the disk and renames: a process killed at any moment leaves the old file whole.

    Raises:
        InputError: the path cannot be written.
    """
    text = json.dumps(facts, sort_keys=True)
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        files.write(
            path, CHECKPOINT, lambda file: save_file(whole, file, {"facts": text, "sha256": _digest(whole, text)})
        )
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}); free the disk or choose another path") from error


def read(path: Path) -> tuple[Tensors, Facts]:
    """Reads what `write` wrote; tensors stay in the file until they are asked for.

    Raises:
        InputError: there is no such file.
        DamagedError: the checksum is not that of the content.
    """
    files.check_present(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata, tensors = file.metadata() or {}, _Stored(path, tuple(file.keys()))
        digest = _digest(tensors, metadata.get("facts", ""))
    except Exception as error:  # types that NumPy does not have are no error of its reader's own
        raise DamagedError(f"{path}: is cut off, or not a checkpoint ({described(error)}); take another one") from error
    if "facts" not in metadata or "sha256" not in metadata:
        raise DamagedError(f"{path}: is not a checkpoint of onnxqat; take another one")
    if digest != metadata["sha256"]:
        raise DamagedError(f"{path}: is damaged (its checksum is not that of its content); take another one")
    with understood(path):
        return tensors, dict(json.loads(metadata["facts"]))


@contextmanager
def understood(path: object) -> Iterator[None]:
    """Turns errors that a well-formed file with incorrect content causes into DamagedError."""
    try:
        yield
    except OnnxqatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, DecodeError) as error:
        raise DamagedError(
            f"{path}: does not hold what this version of onnxqat writes ({described(error)}); take another one"
        ) from error


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def next_path(folder: Path, earlier: Iterable[Path] = ()) -> Path:
    """Path of the next checkpoint: numbered after all in the folder, and after earlier ones that are gone from it."""
    numbers = (_number(path) for path in (*numbered(folder), *earlier) if _NAME.fullmatch(path.name))
    return folder / f"checkpoint-{max(numbers, default=0) + 1:06d}.safetensors"


def check_folder(folder: Path, *, begun: bool) -> None:
    """Raises InputError if the path is no folder, or holds checkpoints of a run that this one does not resume."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is not a folder and cannot be made one; choose another path")
    if numbered(folder) and not begun:
        raise InputError(f"{folder}: holds checkpoints of an earlier run; resume it, or choose an empty folder")


def clear_folder(folder: Path) -> None:
    """Removes what killed runs left half written."""
    clear(folder, "checkpoint-*.safetensors")


def read_newest(folder: Path) -> tuple[Path, Tensors, Facts]:
    """The newest checkpoint of a folder that is whole; damaged ones are skipped with a warning.

    Raises:
        InputError: the folder holds none.
    """
    paths = numbered(folder) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder}: holds no checkpoint to go on from; check the folder, or begin without resuming")
    for path in reversed(paths):
        try:
            return path, *read(path)
        except DamagedError as error:
            log.warning("%s; using the one before it", str(error).removesuffix("; take another one"))
    raise InputError(
        f"{folder}: none of its {len(paths)} checkpoints is whole; begin without resuming, in another folder"
    )


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _digest(tensors: Mapping[str, NDArray[Any]], text: str) -> str:
    """SHA-256 over the text, and names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256(text.encode())

    def add(name: str, array: NDArray[Any]) -> None:
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    for name in sorted(tensors):
        add(name, tensors[name])  # which then holds one of them at a time
    return digest.hexdigest()


def _is_checkpoint(path: Path) -> bool:
    try:
        with safe_open(path, framework="np") as file:
            return file is not None
    except (SafetensorError, OSError, ValueError):
        return False


CHECKPOINT = files.Kind("a checkpoint", _is_checkpoint, text=False)
