"""Widths for weights under a bound on their size, by an exact integer program."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxqat.errors import MissingExtraError

Costs = Mapping[str, Mapping[int, float]]


def assigned(losses: Costs, spent: Costs, most: float) -> dict[str, int] | None:
    """The width of each layer with the smallest sum of losses that spends no more than `most`; None where nothing fits.

    A multiple-choice knapsack: HAWQ-V3 (Yao et al. 2021), solved exactly by HiGHS through scipy.

    Args:
        losses: loss of each layer at each of its widths.
        spent: what each width spends, bits or time.
        most: what all may spend together.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    check_solver()
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = [(name, bits) for name, widths in losses.items() for bits in sorted(widths)]
    spending = np.array([float(spent[name][bits]) for name, bits in choices])
    # widths that lose the same are told apart by what they spend
    least = 1e-11 * sum(max(widths.values()) for widths in losses.values()) / max(len(choices), 1)
    ranges = np.array([max(map(abs, spent[name].values())) or 1.0 for name, _ in choices])
    cost = np.array([losses[name][bits] for name, bits in choices]) + least * spending / ranges
    one_each = np.array([[name == other for other, _ in choices] for name in losses], float)
    unit = np.abs(spending).max() or 1.0
    found = milp(
        cost / (np.abs(cost).max() or 1.0),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(spending[None] / unit, -np.inf, most / unit)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return {name: bits for (name, bits), chosen in zip(choices, found.x, strict=True) if chosen > 0.5}


def check_solver() -> None:
    """Raises MissingExtraError where scipy is not installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("scipy is not installed; run `pip install 'onnxqat[search]'`") from error
