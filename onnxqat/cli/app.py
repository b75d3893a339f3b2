"""The application that commands join, and what is asked of all of them."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from onnxqat import __version__
from onnxqat.cli import outputs
from onnxqat.cli.export import export
from onnxqat.cli.groups import Application
from onnxqat.process.launch import rank
from onnxqat.terminal.plain import log_plainly

app = Application(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantization-aware training on the ONNX graph itself: insert, train, fold, verify; or all of it with run.",
)
app.add_typer(export)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"onnxqat {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback on errors, and more of what happens.")
    ] = False,
) -> None:
    """Sets up logging; `main` takes --debug from anywhere in the call."""
    outputs.console.stderr = False
    level = logging.INFO if rank() == 0 else logging.ERROR  # of several processes, only the first talks
    log_plainly(logging.DEBUG if debug else level)
