"""Runs the code blocks of documentation pages, one page after the other, in the current folder.

    python tools/run_page.py [--given PROGRAM] PAGE ...

- `console`: each line behind `$ onnxqat` is a call of the command line, in this process; lines without `$` are its output.
- `python`: run; the blocks of a page share their names. With a title (`python title="net.py"`) the block is a file, and written.
- `json title=...`, `text title=...`, `js title=...`: files as well.
- `sh` and `text` are not run: set-up, and what programs print. Nor are parts of the package: their titles begin
  with `onnxqat/`, and a `diff` changes lines of it.

The program behind `--given` makes what the pages' readers have. It is run first; pages see its names.

A comment `<!-- needs: torch -->` in front of a page names the packages that its blocks import.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxqat
from onnxqat import cli

BLOCK = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.M | re.S)
NEEDS = re.compile(r"<!-- needs: ([\w, ]+) -->")
RUN = {"console", "python"}
SHOWN = {"sh", "text", "json", "js", "diff", "yaml"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: the language behind the fence.
        text: what stands in it, without the indentation of the fence.
        title: the file that it is; None: it is no file.
        line: where it begins in the page, from 1.
    """

    kind: str
    text: str
    title: str | None
    line: int

    @property
    def of_package(self) -> bool:
        """Whether it shows a part of the package itself."""
        return self.title is not None and self.title.startswith("onnxqat/")

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of the calls of a `console` block; a backslash at the end continues a line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        indent, kind, title, body = match.groups()
        body = re.sub(f"^{indent}", "", body, flags=re.M)
        found.append(Block(kind, body, title, text[: match.start()].count("\n") + 1))
    return found


def needs(page: Path) -> list[str]:
    """Packages that the page's blocks import, beside the core's."""
    return [name.strip() for match in NEEDS.findall(page.read_text(encoding="utf-8")) for name in match.split(",")]


def run(page: Path, given: dict[str, Any] | None = None) -> None:
    """Runs a page in the current folder; where a block fails, says which."""
    names: dict[str, Any] = {**(given or {}), "__name__": "page"}
    for block in blocks(page):
        try:
            _run_block(block, f"{page.name}:{block.line}", names)
        except BaseException:
            print(f"{page}:{block.line}: this block fails", file=sys.stderr)
            raise


def _run_block(block: Block, place: str, names: dict[str, Any]) -> None:
    if block.of_package:
        return
    if block.title is not None:
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.kind == "python":
        exec(compile(block.text, place, "exec"), names)
    elif block.kind == "console":
        for arguments in block.commands:
            _call(arguments)


def _call(arguments: list[str]) -> None:
    """Calls the command line, which ends as a process would."""
    if arguments[0] != "onnxqat":
        raise ValueError(f"{shlex.join(arguments)}: is no call of onnxqat; use a block of another kind")
    before, sys.argv = sys.argv, arguments
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{shlex.join(arguments)}: ends with status {end.code}") from end
    finally:
        sys.argv = before


def main() -> None:
    """Runs the pages that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--given", type=Path, metavar="PROGRAM")
    arguments = parser.parse_args()
    print(f"onnxqat is in {Path(onnxqat.__file__).parent}", file=sys.stderr)
    sys.path.append(str(Path.cwd()))  # files that pages write are modules
    given: dict[str, Any] = {}
    if arguments.given is not None:
        exec(compile(arguments.given.read_text(encoding="utf-8"), str(arguments.given), "exec"), given)
    for page in arguments.pages:
        run(page, given)


if __name__ == "__main__":
    main()
