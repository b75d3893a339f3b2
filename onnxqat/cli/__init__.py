"""The command line: arguments in, files out. What it does is in the stages; see `pipeline` for their order."""

from onnxqat.cli import making as making  # commands join the application, in the order of its help
from onnxqat.cli import running as running
from onnxqat.cli import seeing as seeing
from onnxqat.cli.app import app
from onnxqat.cli.outputs import console
from onnxqat.cli.process import main

__all__ = ["app", "console", "main"]
