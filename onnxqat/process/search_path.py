"""Search path of the command line: the current folder comes last, since a file named `onnx.py` may lie there.

It imports nothing that Python has not loaded by itself.
"""

from __future__ import annotations

import os
import sys


def put_current_folder_last() -> None:
    """Moves the current folder to the end of the search path, where the process runs this package's command line.

    `python -m` and an empty entry of PYTHONPATH put it first. It runs before anything else is imported.
    """
    if _is_command_line(sys.orig_argv):
        found = [entry for entry in sys.path if entry in ("", ".", os.getcwd())]  # noqa: PTH109
        sys.path[:] = [entry for entry in sys.path if entry not in found] + found[:1]


def _is_command_line(words: list[str]) -> bool:
    """Whether these words start Python with this package as a module, or as the script that pip installs."""
    for option, name in zip(words, words[1:], strict=False):  # noqa: RUF007
        if option.startswith("-") and option.endswith("m"):
            return name.partition(".")[0] == "onnxqat"
    names = [word.replace("\\", "/").rpartition("/")[2] for word in words[1:3]]
    return "-monnxqat" in words or any(name in ("onnxqat", "onnxqat.exe") for name in names)
