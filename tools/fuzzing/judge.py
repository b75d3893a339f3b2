"""Runs the commands of a case and says what is wrong with the way they end."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxqat import cli
from tools.fuzzing.cases import Case

UNEXPECTED = "run again with --debug for the traceback"


def judged(case: Case, *, echo: bool = False) -> str | None:
    """Returns why the case failed; None if all of its commands ended in an allowed way."""
    for command in case.commands:
        status, said, failure = _run(command)
        if echo:
            print(f"status {status}: {said}")
        found = failure or _wrong_words(status, said) or _wrong_output(case, status)
        if found:
            return f"{command[0]}: {found}"
        if status:
            return None  # what was refused leaves nothing for the next command
    return None


def _run(command: list[str]) -> tuple[int, str, str | None]:
    said = io.StringIO()
    before, sys.argv = sys.argv, ["onnxqat", *command]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            cli.main()
        return 0, said.getvalue(), None
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else -1
        return code, said.getvalue(), None
    except BaseException as error:
        return -1, said.getvalue(), f"traceback: {type(error).__name__}: {str(error)[:200]}"
    finally:
        sys.argv = before


def _wrong_words(status: int, said: str) -> str | None:
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if "Traceback" in said or UNEXPECTED in said:
        return f"traceback: {' '.join(said.split())[-300:]}"
    if status and not said.strip().splitlines()[-1].startswith("error: "):
        return f"no error is printed: {said[-200:]!r}"
    if any(not one.isprintable() and one != "\n" for one in said):
        return "control characters are printed"
    return None


def _wrong_output(case: Case, status: int) -> str | None:
    """Returns the error in a model that was written, or that there is one although the command failed."""
    if not case.output.exists():
        return None
    if status:
        return "a failed command wrote a file"
    try:
        onnx.checker.check_model(onnx.load(case.output))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(str(case.output), options, providers=["CPUExecutionProvider"])
        # what is wrong with the answers of a quantized model may have been so before, and fold runs nothing
        answers = [] if case.what.startswith(("qdq", "int8")) else _answers(session, case.data)
    except Exception as error:
        return f"invalid output: {' '.join(str(error).split())[:300]}"
    if any(np.isnan(array).any() for array in answers if array.dtype.kind == "f"):
        return "invalid output: answers with NaN"
    return None


def _answers(session: ort.InferenceSession, data: Path) -> list[np.ndarray]:
    with np.load(data) as arrays:
        feeds = {value.name: arrays[value.name] for value in session.get_inputs() if value.name in arrays}
    if len(feeds) < len(session.get_inputs()):
        return []  # of an input that a mutation has renamed
    outputs = session.run(None, feeds)
    return [array for array in outputs if isinstance(array, np.ndarray)]
