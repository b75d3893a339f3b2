"""Sections of pages that tools write, between `<!-- name:begin -->` and `<!-- name:end -->`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"


def replace_section(name: str, text: str, path: Path) -> None:
    """Writes `text` between the marks of the section `name`."""
    before, _, after = _parts(name, path)
    begin, end = _marks(name)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def section(name: str, path: Path) -> str:
    """The text between the marks of the section `name`."""
    return _parts(name, path)[1].strip()


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _parts(name: str, path: Path) -> tuple[str, str, str]:
    """Text before the section, in it and behind it."""
    begin, end = _marks(name)
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    text, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path}: has no section {name!r}; write {begin} and {end} where it goes")
    return before, text, after


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def keep_lines(earlier: str, header: str, found: Iterable[str], order: Iterable[str], key: int = 1) -> str:
    """The table with the lines found in place of earlier ones of the same first cells, in the order of their first cell.

    Args:
        earlier: text with the table as it was.
        header: its first two lines.
        found: new lines.
        order: first cells.
        key: how many cells tell lines apart.
    """
    rows = [row for row in earlier.splitlines() if row.startswith("|") and row not in header.splitlines()]
    lines = {tuple(cells(row)[:key]): row for row in [*rows, *found]}
    places = {name: place for place, name in enumerate(order)}
    return "\n".join([header, *(lines[one] for one in sorted(lines, key=lambda one: places.get(one[0], len(places))))])


def line(shown: Iterable[str]) -> str:
    """A line of a table, the inverse of `cells`."""
    return f"| {' | '.join(shown)} |"


def digest(table: str) -> str:
    """Digest of the table of pretrained models: one line for each, its two widths side by side."""
    rows = [cells(row) for row in table.splitlines() if row.startswith("|")]
    lines = [
        "| model | float | 8 bits, trained | few bits | not trained | trained |",
        "| --- | --: | --: | --- | --: | --: |",
    ]
    for eight, low in zip(rows[2::2], rows[3::2], strict=True):
        (title, score, _, _, _, _, deployed, *_), (_, _, width, _, inserted, _, rescued, *_) = eight, low
        lines.append(f"| {title} | {score} | {deployed} | {width} | {inserted} | **{rescued}** |")
    return "\n".join(lines)
