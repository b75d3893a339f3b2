"""Mixed precision: a width for each layer's weights under a budget. Its nouns; `search` chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxqat.config import Config
from onnxqat.errors import InputError

#: Width that stands for float.
FLOAT = 32


@dataclass(frozen=True)
class Budget:
    """Bound that mixed precision must keep to; exactly one is given.

    Attributes:
        size: bits of all weights and constants, over those of the float model.
        bits: mean width of the quantized weights' elements.
        drop: how much worse than the float model the model may be right after insertion (see `verify`); the smallest is chosen.
    """

    size: float | None = None
    bits: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InputError("budget: give exactly one of size, bits and drop")
        ((name, value),) = given.items()
        if not (np.isfinite(value) and value > 0) and not (name == "drop" and value == 0):
            raise InputError(f"budget: {name} is {value}; it must be above 0")

    @classmethod
    def parsed(cls, text: str) -> Budget:
        """`size=0.2`, `bits=4.5` or `drop=0.5` of the command line.

        Raises:
            InputError: it is none of these.
        """
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if name not in ("size", "bits", "drop") or not np.isfinite(number):
            raise InputError(
                f"--budget {text}: is not size=NUMBER, bits=NUMBER or drop=NUMBER, such as size=0.2; fix it"
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
        loss: estimated distance from the float model's answers, in sum over the samples.

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
    loss: float

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(Counter(self.widths.values()).items()))
        return f"{self.bits:.2f} bits a weight, {self.size:.3f} of float: {counts}".replace("32 bits", "float")
