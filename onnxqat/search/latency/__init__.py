"""Latency: layers that stay in float because they are faster so. Its noun; `choice` chooses, `timing` measures."""

from __future__ import annotations

from dataclasses import dataclass

from onnxqat.config import Config


@dataclass(frozen=True)
class Faster:
    """Result of `onnxqat.faster`.

    Attributes:
        config: settings that leave these layers in float; `insert` takes it, and a file of it can be edited.
        floats: names of the layers that are in float because they are faster so.
        layers: how many layers could have been integers.
        ratio: time of the deployed model over that of the float model.
        before: the same with all layers in integers.
        runtime: name and version of the runtime.

    Example:
        ```python
        found = onnxqat.faster("model.onnx", "train.npz")
        print(found.floats, found.ratio)
        ```
    """

    config: Config
    floats: tuple[str, ...]
    layers: int
    ratio: float
    before: float
    runtime: str

    def __str__(self) -> str:
        return (
            f"{len(self.floats)} of {self.layers} layers stay in float; {self.ratio:.2f} of float's time in {self.runtime}, "
            f"{self.before:.2f} with all in integers"
        )
