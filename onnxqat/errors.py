"""The errors a user can meet: one line each, naming the thing, the fact and the remedy."""

from __future__ import annotations

import re


class OnnxqatError(Exception):
    """The work could not be done: exit status 1 on the command line.

    Example:
        ```python
        try:
            qdq = onnxqat.insert("model.onnx", "train.npz")
        except onnxqat.InputError as error:
            print(error)
        ```
    """


class InputError(OnnxqatError, ValueError):
    """The call, a model, a configuration or data given by the user is wrong: exit status 2."""


class UnsupportedModelError(InputError):
    """The model holds something this tool cannot handle; the message names every node concerned."""


class TrainingError(OnnxqatError):
    """Training could not go on; the last good state is kept."""


class LostProcessError(TrainingError):
    """Another process of the run has died or does not answer."""


class DropError(OnnxqatError):
    """A deployed model is worse than its float model by more than is allowed; it is written all the same."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def short_reason(error: Exception) -> str:
    """A runtime's own words without codes and source locations, one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [
        line for line in lines if line and not line.startswith(("Exception from", "Check '"))
    ]  # OpenVINO's places
    text = " ".join(" ".join(telling or lines).split())
    for mark in (" Status Message: ", "[ONNXRuntimeError] : ", " was false. "):
        text = text.split(mark)[-1]
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)( const)?( \[with [^\]]*\])? ?", "", text)
    return cut(text, 200)


def cut(text: str, length: int) -> str:
    """The text in at most so many characters."""
    return text if len(text) <= length else text[: length - 3] + "..."
