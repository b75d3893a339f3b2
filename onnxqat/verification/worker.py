"""Runs models in an inference runtime; also a script for another Python interpreter that has the runtime.

Stock onnxruntime and the training wheel cannot share an environment. So this file, `ort.py` and `openvino.py` import nothing
but NumPy and their runtime: `host.py` calls `Worker` directly, or starts this file with another interpreter and speaks to
`serve` in lines of JSON, with arrays in `.npz` files between them. Either way the same functions do the work.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
#: Prefix of a line of a reply.
MARK = "onnxqat: "


class WorkerError(Exception):
    """Failure in the runtime.

    Attributes:
        kind: "missing" (a package is not installed), "load" (the model) or "run" (the batch).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Worker:
    """Models loaded in one runtime, by name.

    Args:
        runtime: "ort", "openvino" or "qnn".

    Raises:
        WorkerError: the runtime is not installed.
    """

    def __init__(self, runtime: str) -> None:
        self._runtime = _import(runtime)
        self._models: dict[str, Any] = {}

    def version(self) -> str:
        """Name and version of the runtime."""
        return str(self._runtime.version())

    def load(self, name: str, path: str, threads: int, simulate: bool, rows: int | None = None) -> None:
        """Loads the model at `path` under a name (see the runtime's `load`); `rows`: the samples that it takes at once."""
        try:
            run = self._runtime.load(path, threads, simulate)
        except Exception as error:
            raise WorkerError("load", str(error)) from error
        self._models[name] = run if rows is None else lambda inputs: _in_parts(run, inputs, rows)

    def run(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Outputs of a loaded model by name."""
        try:
            return dict(self._models[name](inputs))
        except Exception as error:
            raise WorkerError("run", str(error)) from error

    def time(self, names: list[str], inputs: dict[str, Any], seconds: float) -> dict[str, list[float]]:
        """Durations in seconds of runs of several models, taken in turn, so that a busy machine disturbs all alike.

        After two rounds to warm up, 5 to 50 rounds, as many as fit into `seconds`.
        """
        taken: dict[str, list[float]] = {name: [] for name in names}
        for name in names * 2:
            self.run(name, inputs)
        end = time.perf_counter() + seconds
        for number in range(50):
            if number >= 5 and time.perf_counter() > end:
                break
            for name in names:
                start = time.perf_counter()
                self.run(name, inputs)
                taken[name].append(time.perf_counter() - start)
        return taken

    def executed(self, path: str, folder: str, threads: int) -> dict[str, Any]:
        """Returns what the runtime executes of the model at `path` (see the runtime's `executed`)."""
        try:
            return dict(self._runtime.executed(path, folder, threads))
        except Exception as error:
            raise WorkerError("load", str(error)) from error

    def profile(self, path: str, folder: str, threads: int, inputs: dict[str, Any], rounds: int) -> dict[str, float]:
        """Returns the time of each node that the runtime executes (see the runtime's `profile`); empty where it tells none."""
        found = getattr(self._runtime, "profile", None)
        if found is None:
            return {}
        try:
            return dict(found(path, folder, threads, inputs, rounds))
        except Exception as error:
            raise WorkerError("run", str(error)) from error

    def compiled(self, path: str, output: str, threads: int, device: dict[str, str]) -> None:
        """Compiles the model at `path` for a device (see the runtime's `compiled`)."""
        try:
            self._runtime.compiled(path, output, threads, device)
        except Exception as error:
            raise WorkerError("load", str(error)) from error


def _in_parts(run: Any, inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """Outputs for samples along the first axis of all inputs, `rows` at a time; the last ones are repeated to fill a part."""
    import numpy as np

    count = len(next(iter(inputs.values())))
    if count == rows:
        return dict(run(inputs))
    taken = [np.minimum(np.arange(start, start + rows), count - 1) for start in range(0, count, rows)]
    parts = [run({name: array[index] for name, array in inputs.items()}) for index in taken]
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def serve(runtime: str, requests: TextIO, replies: TextIO) -> None:
    """Answers requests, one JSON object a line, until the stream ends.

    A request is {"call": name of a Worker method, its arguments}, with `inputs` as a list of names plus a file of arrays in
    that order; a reply is {"result": ...} or {"failure": kind, "message": text}. Before the first request stands an empty
    reply, and before each a mark: an interpreter may print lines of its own first.
    """
    worker = None
    replies.write(f"{MARK}{{}}\n")
    replies.flush()
    for line in requests:
        request = json.loads(line)
        try:
            worker = worker or Worker(runtime)
            reply = {"result": _answer(worker, request)}
        except WorkerError as failure:
            reply = {"failure": failure.kind, "message": str(failure)}
        replies.write(MARK + json.dumps(reply) + "\n")
        replies.flush()


def _answer(worker: Worker, request: dict[str, Any]) -> Any:
    call = request.pop("call")
    if "inputs" in request:
        request["inputs"] = read_arrays(**request["inputs"])
    if call != "run":
        return getattr(worker, call)(**request)
    file = request.pop("outputs")
    return write_arrays(worker.run(**request), file)


def write_arrays(arrays: dict[str, Any], file: str) -> dict[str, Any]:
    """Writes arrays to an uncompressed `.npz` file.

    Returns:
        What `read_arrays` takes; names stay out of the file, for they need not make good member names.
    """
    import numpy as np

    np.savez(file, *arrays.values())
    return {"names": list(arrays), "file": file}


def read_arrays(names: list[str], file: str) -> dict[str, Any]:
    """Arrays by name from what `write_arrays` wrote."""
    import numpy as np

    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[f"arr_{index}"] for index, name in enumerate(names)}


@cache
def _import(runtime: str) -> Any:
    """The module beside this one, by path: in another environment there is no onnxqat to import it from.

    It is run once in a process, so that what it keeps is one.
    """
    spec = importlib.util.spec_from_file_location(f"_onnxqat_verify_{runtime}", HERE / f"{runtime}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise WorkerError("missing", error.name or str(error)) from error
    return module


def main() -> None:
    """Serves on standard input and output; what native code prints to the output goes to the error stream instead."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # this folder is first in the search path of a script, where `openvino.py` would hide the package of that name
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    # the training build of onnxruntime tries this module, and so imports torch: seconds, for nothing that is done here
    sys.modules["onnxruntime.training.ortmodule"] = None  # type: ignore[assignment]
    serve(sys.argv[1], sys.stdin, replies)


if __name__ == "__main__":
    main()
