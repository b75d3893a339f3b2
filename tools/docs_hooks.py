"""References that mkdocs cannot write by itself: those of the command line and of the configuration's defaults."""

from __future__ import annotations

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Writes the references where a page asks for them; mkdocs calls this for each page."""
    for mark, written in (("command line", _command_line), ("defaults", _defaults)):
        comment = f"<!-- {mark}: written by tools/docs_hooks.py -->"
        if comment in markdown:
            markdown = markdown.replace(comment, written())
    return markdown


def _command_line() -> str:
    import typer
    from typer.cli import get_docs_for_click

    from onnxqat.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="onnxqat").partition("\n")[2]


def _defaults() -> str:
    """Defaults of the configuration, as JSON writes them."""
    import json

    from onnxqat import Config

    lines = ["| setting | default |", "| --- | --- |"]
    values = json.loads(Config().model_dump_json(exclude_none=False))
    for name, value in values.items():
        shown = value["type"] if isinstance(value, dict) and "type" in value else value
        lines.append(f"| `{name}` | `{json.dumps(shown)}` |")
    return "\n".join(lines)
