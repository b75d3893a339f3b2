"""Calls the worker from the user's program: in this process, or in the environment of another Python interpreter."""

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
from typing import IO, Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError, MissingExtraError, OnnxqatError
from onnxqat.graph import files, io
from onnxqat.names import RuntimeName
from onnxqat.targets import TARGETS
from onnxqat.verification import worker

Arrays = dict[str, NDArray[Any]]

PACKAGES: dict[RuntimeName, str] = {one.runtime: one.package for one in TARGETS.values()}
#: Runtime of a model that names no target, and runtime of each target (`onnxqat.target`).
RUNTIME_OF: dict[str | None, RuntimeName] = {None: "ort", **{one.name: one.runtime for one in TARGETS.values()}}
REASON_LENGTH = 240
#: Time that another interpreter may take to begin, before it imports anything of size.
STARTING_SECONDS = 60.0
#: Characters after which a line of the worker's is taken for no reply.
LONGEST_LINE = 2**26


@dataclass(frozen=True)
class Host:
    """A runtime at work, with a folder for the files that go to and from it.

    Attributes:
        runtime: which one.
        threads: how many threads it may use.
        folder: temporary folder, gone after use.
        calls: where the worker runs.
    """

    runtime: RuntimeName
    threads: int
    folder: Path
    calls: _Here | _There

    def version(self) -> str:
        """Name and version of the runtime."""
        return str(self._call("version"))

    def load(self, name: str, model: ir.Model, *, simulate: bool = False) -> Path:
        """Loads a model under a name; `simulate` computes its quantizers in float, as training does.

        Returns:
            The file that the model was written to for the runtime.
        """
        path = self._write(name, model)
        self._call("load", name, name=name, path=path, threads=self.threads, simulate=simulate)
        return Path(path)

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Outputs of a loaded model by name."""
        outputs: Arrays = self._call("run", name, name=name, inputs=inputs)
        return outputs

    def time(self, names: list[str], inputs: Arrays, seconds: float) -> dict[str, NDArray[np.float64]]:
        """Durations in seconds of runs taken in turn: [rounds] for each model."""
        taken = self._call("time", names[0], names=names, inputs=inputs, seconds=seconds)
        return {name: np.asarray(taken[name]) for name in names}

    def executed(self, model: ir.Model) -> dict[str, Any]:
        """Returns what the runtime executes: {"model": path of its optimized graph} or {"layers": ...}."""
        path = self._write("marked", model)
        answer = self._call("executed", "deployed", path=path, folder=str(self.folder), threads=self.threads)
        return dict(answer)

    def _write(self, name: str, model: ir.Model) -> str:
        path = self.folder / f"{name}.onnx"
        io.write(model, path)
        return str(path)

    def _call(self, call: str, model: str = "", **arguments: Any) -> Any:
        try:
            return self.calls(call, arguments)
        except worker.WorkerError as failure:
            _explain(failure, self, model)


def _explain(failure: worker.WorkerError, host: Host, model: str) -> NoReturn:
    if failure.kind == "missing":
        package = PACKAGES[host.runtime] if str(failure) != "numpy" else "numpy"
        raise MissingExtraError(
            f"runtime {host.runtime!r}: {package} is not installed for {host.calls.python}; "
            f"run `{host.calls.python} -m pip install {package}`"
        ) from failure
    reason = shortened(str(failure))
    if failure.kind == "load":
        raise InputError(f"{model} model: {PACKAGES[host.runtime]} cannot load it: {reason}") from failure
    raise InputError(f"{model} model: {PACKAGES[host.runtime]} cannot run it on this batch: {reason}") from failure


def shortened(message: str) -> str:
    """A runtime's own words in one line, without the source locations that both runtimes put before them."""
    lines = [line.strip() for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    text = " ".join(telling or lines)
    text = text.split(" Status Message: ")[-1].removeprefix("[ONNXRuntimeError] : ")
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."


@contextmanager
def opened(runtime: RuntimeName, interpreter: str | os.PathLike[str] | None = None, threads: int = 2) -> Iterator[Host]:
    """A runtime ready to load models.

    Args:
        runtime: "ort" or "openvino".
        interpreter: Python interpreter of the environment that has the runtime; None: this one.
        threads: how many threads the runtime may use.

    Raises:
        InputError: no such runtime or interpreter, the runtime is not installed there, or it refuses a model or a batch.
    """
    if runtime not in PACKAGES:
        raise InputError(f"runtime {runtime!r}: is not one of {', '.join(map(repr, PACKAGES))}; choose one of them")
    with files.workplace() as folder:
        if interpreter is None:
            yield Host(runtime, threads, folder, _Here(runtime))
            return
        with _there(_located(interpreter), runtime, folder) as calls:
            yield Host(runtime, threads, folder, calls)


class _Here:
    """Calls the worker in this process."""

    python = sys.executable

    def __init__(self, runtime: str) -> None:
        self._runtime = runtime
        self._worker: worker.Worker | None = None

    def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
        self._worker = self._worker or worker.Worker(self._runtime)
        return getattr(self._worker, name)(**arguments)


@dataclass(frozen=True)
class _There:
    """Calls the worker in another process, through lines of JSON and files of arrays."""

    python: str
    process: subprocess.Popen[str]
    folder: Path
    errors: IO[str]

    def __call__(self, name: str, arguments: dict[str, Any]) -> Any:
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
        words = f" ({said[-1][:REASON_LENGTH]})" if said else ""
        return (
            f"interpreter {self.python!r}: ended with status {code} in place of an answer{words}; "
            "check that it is a Python 3.10 or newer that starts"
        )


@contextmanager
def _there(interpreter: str, runtime: str, folder: Path) -> Iterator[_There]:
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
            calls = _There(interpreter, process, folder, errors)
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


def _located(interpreter: str | os.PathLike[str]) -> str:
    """The program that is meant: a path as it stands, a bare name on the search path of programs."""
    program = os.fspath(interpreter)
    is_path = isinstance(interpreter, Path) and interpreter.exists()  # a Path has lost its ./
    return str(Path(program).absolute()) if is_path or Path(program).name != program else program


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
