"""Mixed precision: a width for each layer's weights under a budget. Its nouns; `search` chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

import numpy as np
import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.graph.constants import constant

#: Width that stands for float.
FLOAT = 32


@dataclass(frozen=True)
class Budget:
    """Bound that mixed precision must keep to; exactly one is given.

    Attributes:
        size: bits of all weights and constants, over those of the float model.
        bits: mean width of the quantized weights' elements.
        drop: how much worse than the float model the model may be right after insertion (see `verify`); the smallest is chosen.
        latency: time of the deployed model over the float model's.
    """

    size: float | None = None
    bits: float | None = None
    drop: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError("budget: give exactly one of size, bits, drop and latency")
        ((name, value),) = given.items()
        if not (np.isfinite(value) and value > 0) and not (name == "drop" and value == 0):
            raise InputError(f"budget: {name} is {value}; it must be above 0")
        if name == "latency" and value >= 1:
            raise InputError(f"budget: latency is {value}, a share of the float model's time; it must be below 1")

    @classmethod
    def parsed(cls, text: str) -> Budget:
        """`size=0.2`, `bits=4.5`, `drop=0.5` or `latency=0.7` of the command line.

        Raises:
            InputError: it is none of these.
        """
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in [field.name for field in fields(cls)] or not np.isfinite(number):
            raise InputError(
                f"--budget {text}: is not size=NUMBER, bits=NUMBER, drop=NUMBER or latency=NUMBER, such as size=0.2; fix it"
            )
        return cls(**{name: number})


@dataclass(frozen=True)
class Mixed:
    """Result of `onnxqat.mixed_precision`.

    Attributes:
        config: settings with a width for each layer; `insert` takes it, and a file of it can be edited.
        widths: width of each weight by its name; 32 for float.
        size: bits of all weights and constants over those of the float model. Codes of fewer than 8 bits count as packed, which a
            deployed file does for 4 bits in blocks alone.
        bits: mean width over the quantized weights' elements.
        loss: estimated distance from the float model's answers, in sum over the samples; where layers are in float or not, noise
            over signal of the outputs, in sum over the layers; None where a drop holds with nothing in float.
        latency: time over the float model's, as it was measured; None where time was not asked for.

    Example:
        ```python
        found = onnxqat.mixed_precision("model.onnx", "train.npz", bits=4.5)
        print(found.widths, found.size)
        ```
    """

    config: Config
    widths: Mapping[str, int]
    size: float
    bits: float
    loss: float | None
    latency: float | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        widths: Mapping[str, int],
        counts: tuple[Mapping[str, int], int],
        loss: float | None,
        latency: float | None = None,
    ) -> Mixed:
        """The result with these widths, from the elements of each weight and the bits of all else."""
        elements, rest = counts
        total, bits = sum(elements.values()), sum(elements[name] * width for name, width in widths.items())
        return cls(config, widths, (bits + rest) / (FLOAT * total + rest), bits / total, loss, latency)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(Counter(self.widths.values()).items()))
        time = "" if self.latency is None else f", {self.latency:.2f} of float's time"
        shown = f"{self.bits:.2f} bits a weight, {self.size:.3f} of float{time}: {counts}"
        return shown.replace("32 bits", "float")


def counted(plain: ir.Model, weights: Collection[str]) -> tuple[dict[str, int], int]:
    """Elements of each of these weights of a float model, and bits of all other constants."""
    tensors = {str(value.name): constant(value) for value in plain.graph.initializers.values()}
    elements = {name: int(array.size) for name, array in tensors.items() if name in weights and array is not None}
    return elements, sum(
        8 * array.nbytes for name, array in tensors.items() if name not in weights and array is not None
    )
