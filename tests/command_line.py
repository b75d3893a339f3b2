"""Calls of the command line in the process of the tests."""

from __future__ import annotations

import sys

import pytest

from onnxqat import cli


def status_of(*arguments: object) -> int:
    """Exit status of a call with these arguments; tables are as wide as they want to be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onnxqat", *map(str, arguments)])
        patch.setattr(cli.console, "width", 200)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)
