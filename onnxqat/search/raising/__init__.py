"""Accuracy control: precision is raised step by step until the deployed model holds. Its nouns; `steps` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxqat.config import Config


@dataclass(frozen=True)
class Step:
    """One step on the way.

    Attributes:
        what: what it changed.
        drop: loss against the float model after it, in the metric's unit.
        score: the deployed model's score.
        holds: whether that is no more than allowed.
    """

    what: str
    drop: float
    score: float
    holds: bool


@dataclass(frozen=True)
class Raised:
    """Result of `raised`.

    Attributes:
        config: the best settings that were found.
        model: the Q/DQ model by these settings.
        path: the steps, in order.
    """

    config: Config
    model: onnx.ModelProto
    path: tuple[Step, ...]

    @property
    def holds(self) -> bool:
        """Whether the model loses no more than allowed, without training."""
        return any(step.holds for step in self.path)
