"""What the README shows runs, on a few images of the same data."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from models import fashion_mnist
from onnxqat import cli

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
COMMANDS = [line[2:] for kind, block in BLOCKS if kind == "console" for line in block.splitlines()]
PROGRAMS = [block for kind, block in BLOCKS if kind == "python"]
ROWS = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that stands in for the repository's root, so that nothing is written there."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


@pytest.fixture(autouse=True)
def few_images(monkeypatch, folder):
    read = fashion_mnist._read_slice
    monkeypatch.setattr(fashion_mnist, "_read_slice", lambda split: tuple(part[:ROWS] for part in read(split)))
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(c.split()[:3]) for c in COMMANDS])
def test_command_of_the_readme_runs(monkeypatch, command):
    arguments = shlex.split(command)
    assert arguments[0] == "onnxqat"
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    written = arguments[arguments.index("-o") + 1] if "-o" in arguments else "models"
    assert Path(written).exists()


@pytest.mark.parametrize("program", PROGRAMS, ids=[p.strip().splitlines()[-1][:40] for p in PROGRAMS])
def test_program_of_the_readme_runs(program):
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_every_kind_of_block_is_run():
    assert {kind for kind, _ in BLOCKS} <= {"console", "python"}
    assert COMMANDS
    assert PROGRAMS
