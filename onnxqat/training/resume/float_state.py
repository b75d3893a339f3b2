"""Tells the state of a float model from that of a quantized one, whose weights differ where a normalization was folded in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

#: Last parts of names that a normalization's statistics have in PyTorch.
_STATISTICS = ("running_mean", "running_var")
#: Largest share of a weight by which rounding keeps it from being an exact multiple.
_ROUNDING = 1e-5
#: Least difference between the factors of a layer's channels.
_SPREAD = 1e-3


def reason_to_refuse(
    keys: Collection[str], given: Arrays, initial: Arrays, folded: Collection[str], scales: Collection[str]
) -> str | None:
    """Returns why a float model's state does not fit; None if it is not one, or nothing was folded.

    Args:
        keys: all names of the state.
        given: its arrays by initializer name, as far as the model has them.
        initial: those that the model began with.
        folded: initializers into which a normalization was folded.
        scales: names of scales, which a float model does not have.
    """
    statistics = sorted(key for key in keys if key.rpartition(".")[2] in _STATISTICS)
    if statistics and given:
        return f"holds {statistics[0]!r}"
    changed = sorted(name for name in given if name in folded and name not in scales)
    if changed and not any(name in scales for name in given):
        return f"holds {changed[0]!r} without a scale"
    unfolded = next((name for name in changed if _is_rescaled(given[name], initial[name])), None)
    return None if unfolded is None else f"holds {unfolded!r} as it was before"


def _is_rescaled(given: NDArray[Any], held: NDArray[Any]) -> bool:
    """Whether each channel, along either axis that a layer's channels can have, is a multiple by a factor of its own."""
    if given.shape != held.shape or held.ndim < 2:
        return False
    return any(_is_multiple(np.moveaxis(given, axis, 0), np.moveaxis(held, axis, 0)) for axis in (0, 1))


def _is_multiple(given: NDArray[Any], held: NDArray[Any]) -> bool:
    given, held = (array.reshape(len(array), -1).astype(np.float64) for array in (given, held))
    alive = np.square(held).sum(1) > 0
    given, held = given[alive], held[alive]
    if not len(held):
        return False
    factors = (given * held).sum(1, keepdims=True) / np.square(held).sum(1, keepdims=True)
    exact = np.abs(given - factors * held) <= _ROUNDING * np.abs(given).max(1, keepdims=True)
    return bool(exact.all() and np.ptp(factors) > _SPREAD * np.abs(factors).max())
