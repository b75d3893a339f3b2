"""The global random number generators that a loader may draw from: Python's, NumPy's, and PyTorch's where it is imported."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

RandomState = dict[str, Any]


def capture() -> RandomState:
    """Their states, in a form that JSON can hold."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    state: RandomState = {
        "python": [version, list(internal), gauss],
        "numpy": {
            **numpy_state,
            "state": {name: np.asarray(part).tolist() for name, part in numpy_state["state"].items()},
        },
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = torch.get_rng_state().numpy().tobytes().hex()
    return state


def restore(state: RandomState) -> None:
    """Restores captured states; PyTorch's only where it is imported, since nothing draws from it otherwise."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    inner = state["numpy"]["state"]
    key = {"key": np.array(inner["key"], np.uint32)} if "key" in inner else {}  # the default generator has one
    np.random.set_state({**state["numpy"], "state": {**inner, **key}})
    torch = sys.modules.get("torch")
    if torch is not None and "torch" in state:
        torch.set_rng_state(torch.from_numpy(np.frombuffer(bytes.fromhex(state["torch"]), np.uint8).copy()))
