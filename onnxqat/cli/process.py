"""One call of the command line as a process: its signals, streams and exit status."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from onnxqat.cli.app import app
from onnxqat.errors import InputError, LostProcessError, OnnxqatError
from onnxqat.process import interruption
from onnxqat.process.foreign import described, is_own_exit
from onnxqat.process.interruption import Interrupted, Raiser
from onnxqat.process.launch import give_way, in_words, launched, rank
from onnxqat.terminal.plain import plain
from onnxqat.terminal.streams import close_streams, open_streams


def main() -> None:
    """Runs the command line.

    Exit status: 0 done; 1 the work failed; 2 the call or an input file is wrong; 130, 143, 129: Ctrl-C, SIGTERM, SIGHUP.
    """
    open_streams()
    try:
        # of several processes, torchrun ends all when one has ended: `distributed` handles that
        with nullcontext() if launched() else interruption.raising() as signals:
            _main(signals)
    except SystemExit as end:
        failure = close_streams()
        if failure is None or end.code:
            raise
        _end(f"standard output: cannot be written ({failure}); free the disk, or read it to its end", 1)


def _main(signals: Raiser | None) -> NoReturn:
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = _called(["--debug", *arguments] if debug else arguments, signals)
    except Interrupted as interrupted:
        print(f"interrupted by {interrupted.cause}", file=sys.stderr)
        sys.exit(interrupted.status)
    except typer.Abort:
        sys.exit(130)
    except TyperException as error:  # the call is wrong; without arguments the help has been shown, and says it all
        message = error.format_message().rstrip(".")
        message = message.replace(": Value error, ", ": ").replace(": Input should", ": it must")  # pydantic's words
        _end(f"{message}; see --help" if message else "", 2)
    except SystemExit as error:
        # rich ends the process where nobody reads standard output any more
        if debug or is_own_exit(error) or isinstance(error.__context__, BrokenPipeError):
            raise
        _end(f"user code fails ({described(error)}); fix it", 1)
    except Exception as error:
        if debug:
            raise
        _fail(error)
    sys.exit(status)


def _called(arguments: Sequence[str], signals: Raiser | None) -> int:
    """Exit status of the command; typer makes one status of all signals."""
    status = int(app(arguments, standalone_mode=False) or 0)
    if signals is not None and signals.raised is not None and status == signal.SIGINT + 128:
        raise signals.raised
    return status


def _fail(error: Exception) -> NoReturn:
    if rank() > 0 and not isinstance(error, LostProcessError):
        give_way()
    if isinstance(error, OnnxqatError):
        _end(str(error), 2 if isinstance(error, InputError) else 1)
    if isinstance(error, OSError) and error.filename:
        _end(f"{error.filename}: {error.strerror}; check the path", 2)
    _end(f"{described(error)}; run again with --debug for the traceback", 1)


def _end(message: str, status: int) -> NoReturn:
    if message:
        with suppress(OSError):
            print(plain(in_words(" ".join(message.split()))), file=sys.stderr)
    sys.exit(status)
