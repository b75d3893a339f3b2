"""Presets: settings of quantization and training that go together, for each width, and where each was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from onnxqat.errors import InputError
from onnxqat.search.mixed import FLOAT
from onnxqat.terminal.plain import cells
from onnxqat.verification.measures import measure


@dataclass(frozen=True)
class Preset:
    """Settings for a width.

    Attributes:
        weight_bits: width of weights.
        activation_bits: width of the values that weighted layers read.
        reconstruct: whether blocks are reconstructed before training.
        lr: largest learning rate of AdamW.
        epochs: passes over the data.
        estimator: how ranges of activations are found.
        found: what was measured to choose them.
        spares: whether the layers that lose most stay in float, as few as half of the drop that `verify` allows needs.
    """

    weight_bits: int
    activation_bits: int
    reconstruct: bool
    lr: float
    epochs: int
    estimator: str
    found: str
    spares: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The settings of quantization, as of `Config`."""
        return {
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "activation_range": self.estimator,
        }


_RECONSTRUCTED = "1e-4 of 1e-4, 3e-4 and 1e-3 by 1,000 validation images, on ResNet-20 at 2 bits after reconstruction"
_INT8 = Preset(
    8,
    8,
    reconstruct=False,
    lr=1e-5,
    epochs=3,
    estimator="mse",
    found="ResNet-20: three epochs at 1e-4 cost 0.2 points, an epoch at 1e-5 nothing; six pretrained models take 1e-5",
)
#: The presets by name.
PRESETS = {
    "int8": _INT8,
    "int8-mixed": replace(
        _INT8, found="as int8; the layers in float are measured on the data of the call", spares=True
    ),
    "w4a8": Preset(4, 8, reconstruct=True, lr=1e-4, epochs=3, estimator="mse", found=f"as w2a2: {_RECONSTRUCTED}"),
    "w4a4": Preset(4, 4, reconstruct=True, lr=1e-4, epochs=3, estimator="mse", found=f"as w2a2: {_RECONSTRUCTED}"),
    "w2a2": Preset(2, 2, reconstruct=True, lr=1e-4, epochs=3, estimator="mse", found=_RECONSTRUCTED),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r}: is not known; use {', '.join(PRESETS)}")
    return PRESETS[name]


def sparing(name: str | None, metric: str, drop: float | None) -> dict[str, Any]:
    """Arguments for `mixed_precision` from a preset that spares layers; none where it spares none.

    Args:
        name: name of the preset; None: there is none.
        metric: what is judged by.
        drop: largest drop; None: half of what `verify` allows.

    Raises:
        InputError: nothing says how large a drop may be.
    """
    if name is None or not preset(name).spares:
        return {}
    allowed = measure(metric).allowed if drop is None else 2 * drop
    if allowed is None:
        raise InputError(f"preset {name!r}: nothing says what drop of {metric} is allowed; give --budget drop=NUMBER")
    return {"drop": allowed / 2, "widths": (preset(name).weight_bits, FLOAT)}


def table() -> Table:
    """All presets, with what was measured to choose them."""
    columns = ("preset", "weights", "activations", "ranges", "reconstruct", "loss", "rate", "epochs", "found by")
    shown = Table(*columns)
    for name, one in PRESETS.items():
        some = " or float" if one.spares else ""
        bits = f"{one.weight_bits} bits{some}", f"{one.activation_bits} bits{some}"
        training = "yes" if one.reconstruct else "no", "auto", f"{one.lr:g}", str(one.epochs)
        shown.add_row(*cells(name, *bits, one.estimator, *training, one.found))
    return shown
