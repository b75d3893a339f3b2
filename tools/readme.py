"""Sections of the README that tools write, between `<!-- name:begin -->` and `<!-- name:end -->`."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def replace_section(name: str, text: str, path: Path = README) -> None:
    """Puts `text` in place of what stands between the marks of the section `name`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    whole = path.read_text(encoding="utf-8")
    before, found, rest = whole.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path}: has no section {name!r}; write {begin} and {end} where it goes")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
