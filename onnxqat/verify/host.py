"""The side of the user's program: runs the worker's functions here, or in the environment of another Python interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError, MissingExtraError, OnnxqatError
from onnxqat.graph import files, io
from onnxqat.verify import worker

Arrays = dict[str, NDArray[Any]]
RuntimeName = Literal["ort", "openvino"]

PACKAGES: dict[RuntimeName, str] = {"ort": "onnxruntime", "openvino": "openvino"}
#: Where a model is run that names no runtime, and where one is that was made for a target (`onnxqat.target`).
RUNTIME_OF: dict[str | None, RuntimeName] = {None: "ort", "ort-cpu": "ort", "openvino": "openvino"}
REASON_LENGTH = 240


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
        """What the runtime makes of a model: {"model": path of its optimized graph} or {"layers": ...}."""
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
        with _there(str(interpreter), runtime, folder) as calls:
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
            line = replies.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise OnnxqatError(self._last_words())
        reply: dict[str, Any] = json.loads(line)
        return reply

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
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
            )
        except OSError as error:
            raise InputError(
                f"interpreter {interpreter!r}: cannot be started ({error.strerror}); give the path of a Python interpreter"
            ) from error
        try:
            yield _There(interpreter, process, folder, errors)
        finally:
            process.kill()
            process.communicate()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
