"""The command line: arguments in, files out. What it does is in the stages; see `pipeline` for their order."""

from onnxqat.cli import seeing as seeing  # its commands join the others
from onnxqat.cli.commands import app
from onnxqat.cli.outputs import console
from onnxqat.cli.process import main

__all__ = ["app", "console", "main"]
