"""What mkdocs cannot do by itself: the command line's reference, from the command line."""

from __future__ import annotations

from typing import Any

MARK = "<!-- command line: written by tools/docs_hooks.py -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes the reference where a page asks for it; mkdocs calls this for each page."""
    return markdown.replace(MARK, _reference()) if MARK in markdown else markdown


def _reference() -> str:
    import typer
    from typer.cli import get_docs_for_click

    from onnxqat.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="onnxqat").partition("\n")[2]
