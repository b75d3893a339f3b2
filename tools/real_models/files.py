"""File type (Magika): which of 214 types a file has, from its first and last 1,024 bytes; labels are the files' extensions."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.real_models.model import Data, Examples, share_right

#: Extension → the model's class: its place in `target_labels_space` of Magika 1.0.3's configuration.
CLASSES = {
    "py": 143, "pyc": 144, "c": 17, "cpp": 26, "cc": 26, "json": 87, "html": 71, "css": 31, "js": 83, "md": 100, "txt": 186,
    "xml": 206, "png": 133, "jpg": 86, "gz": 64, "zip": 212, "sh": 161, "pl": 130, "toml": 181, "yaml": 209, "csv": 32,
    "npz": 111, "npy": 110, "rst": 153, "ttf": 184, "svg": 172, "ini": 76, "gif": 58, "m4": 97, "cmake": 22, "proto": 141,
    "bz2": 16, "xz": 208, "tar": 175, "pdf": 127, "wav": 195, "tex": 91, "sql": 165, "bat": 12, "ps1": 136, "diff": 37,
    "patch": 37, "ico": 73, "f90": 55, "tcl": 176,
}  # fmt: skip
FOLDERS = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share", "/usr/lib"]
HALF, PADDING, BLOCK = 1024, 256, 4096
SMALLEST, PER_TYPE = 256, 40
BATCH = 16


def data(train: int, test: int) -> Data:
    """Files of Python and of the system, at most `PER_TYPE` of a type, no two with the same content."""
    files = sorted(_found(), key=lambda pair: pair[0])
    return Data(_batches(files[test:][:train]), _batches(files[:test]), share_right)


def _found() -> list[tuple[str, bytes, int]]:
    """(hash of the content, content, class) of files of each type, in an order that does not depend on their types."""
    paths: dict[int, list[Path]] = defaultdict(list)
    for folder in FOLDERS:
        for root, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                label = CLASSES.get(name.rpartition(".")[2])
                if label is not None and "." in name:
                    paths[label].append(Path(root, name))
    found: dict[str, tuple[bytes, int]] = {}
    for label, candidates in paths.items():
        candidates.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest())
        kept = 0
        for path in candidates:
            if kept == PER_TYPE:
                break
            content = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b""
            digest = hashlib.sha256(content).hexdigest()
            if len(content) >= SMALLEST and digest not in found:
                found[digest] = content, label
                kept += 1
    return [(digest, content, label) for digest, (content, label) in found.items()]


def _batches(files: list[tuple[str, bytes, int]]) -> list[Examples]:
    cuts = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
    return [
        Examples({"bytes": np.stack([_features(c) for _, c, _ in cut])}, [label for *_, label in cut]) for cut in cuts
    ]


def _features(content: bytes) -> NDArray[np.int32]:
    """Beginning and end of a file without the white space around them, padded behind and before: int32 [2 · HALF], 0 to 256."""
    first, last = content[:BLOCK].lstrip()[:HALF], content[-BLOCK:].rstrip()[-HALF:]
    features = np.full(2 * HALF, PADDING, np.int32)
    features[: len(first)] = np.frombuffer(first, np.uint8)
    features[2 * HALF - len(last) :] = np.frombuffer(last, np.uint8)
    return features
