"""Calls the worker's functions: in this process, or in that of another environment's Python interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from onnxqat.errors import InputError, OnnxqatError, cut
from onnxqat.verification import worker

#: Time that another interpreter may take to begin, before it imports anything of size.
STARTING_SECONDS = 60.0
#: Characters after which a line of the worker's is taken for no reply.
LONGEST_LINE = 2**26


class Here:
    """Calls the worker in this process."""

    python = sys.executable

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self._worker: worker.Worker | None = None

    def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
        """Result of the worker's function of that name."""
        self._worker = self._worker or worker.Worker(self._runtime)
        return getattr(self._worker, name)(**arguments)


@dataclass(frozen=True)
class There:
    """Calls the worker in another process, through lines of JSON and files of arrays."""

    python: str
    process: subprocess.Popen[str]
    folder: Path
    errors: IO[str]

    def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
        """Result of the worker's function of that name."""
        request = {"call": name, **arguments}
        if "inputs" in arguments:
            request["inputs"] = worker.write_arrays(arguments["inputs"], str(self.folder / "inputs.npz"))
        if name == "run":
            request["outputs"] = str(self.folder / "outputs.npz")
        reply = self._ask(request)
        if "failure" in reply:
            raise worker.WorkerError(reply["failure"], reply["message"])
        return worker.read_arrays(**reply["result"]) if name == "run" else reply["result"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        requests, replies = _stream(self.process.stdin), _stream(self.process.stdout)
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise OnnxqatError(self._last_words()) from None
        return self._reply(replies)

    def _reply(self, replies: IO[str]) -> dict[str, Any]:
        """The next line that is a reply; other printed lines are skipped."""
        while line := replies.readline(LONGEST_LINE):
            if line.startswith(worker.MARK):
                reply: dict[str, Any] = json.loads(line.removeprefix(worker.MARK))
                return reply
        raise OnnxqatError(self._last_words())

    def greet(self) -> None:
        """Waits for the worker to begin.

        Raises:
            OnnxqatError: the program ends or does not begin it in time.
        """
        timer = threading.Timer(STARTING_SECONDS, _kill, [self.process])
        timer.start()
        try:
            self._reply(_stream(self.process.stdout))
        except OnnxqatError:
            if timer.finished.is_set():
                raise OnnxqatError(
                    f"interpreter {self.python!r}: has not answered within {STARTING_SECONDS:g} s; "
                    "check that it is a Python 3.10 or newer that starts"
                ) from None
            raise
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        words = f" ({cut(said[-1], 240)})" if said else ""
        return (
            f"interpreter {self.python!r}: ended with status {code} in place of an answer{words}; "
            "check that it is a Python 3.10 or newer that starts"
        )


@contextmanager
def there(interpreter: str, runtime: str, folder: Path) -> Iterator[There]:
    """Starts another interpreter's worker, and ends it.

    Raises:
        InputError: the interpreter cannot be started.
        OnnxqatError: it does not begin the worker.
    """
    # -E: a PYTHONPATH that serves this environment must not leak into the other
    command = [interpreter, "-E", "-B", str(worker.HERE / "worker.py"), runtime]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a script may start the interpreter as a process of its own
            )
        except (OSError, ValueError) as error:  # a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"interpreter {interpreter!r}: cannot be started ({reason}); give the path of a Python interpreter"
            ) from error
        try:
            calls = There(interpreter, process, folder, errors)
            calls.greet()
            yield calls
        finally:
            _kill(process)
            process.communicate()


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a process, with those that it has started where the system knows which."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def located(interpreter: str | os.PathLike[str]) -> str:
    """The program that is meant: a path as it stands, a bare name on the search path of programs."""
    program = os.fspath(interpreter)
    is_path = isinstance(interpreter, Path) and interpreter.exists()  # a Path has lost its ./
    return str(Path(program).absolute()) if is_path or Path(program).name != program else program


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
