"""Refuses arguments that are out of range, or another library's, and says how that library's own loop trains the model."""

from __future__ import annotations

from typing import Any

from onnxqat.errors import InputError

#: What makes the model trainable in a library's own loop, by the library's package.
_WAYS = {
    "keras": "to train with what Keras has, give it the model of `onnxqat.keras.as_model`",
    "torch": "to train with what PyTorch has, give it the module of `onnxqat.torch.as_module`",
}


def check_own(what: str, value: Any, kind: type, choices: str) -> None:
    """Raises InputError unless `value` is of that kind; `choices` names what there is."""
    if not isinstance(value, kind):
        raise InputError(f"{what}: {type(value).__name__} is none of onnxqat's; use {choices}{elsewhere(value)}")


def elsewhere(value: Any) -> str:
    """Continues a message by the way that serves a value of Keras's or PyTorch's; empty for any other."""
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    ways = [way for package, way in _WAYS.items() if package in packages]
    return f"; {ways[0]}" if ways else ""


def check_numbers(clip_norm: float | None, accumulate: int, seed: int) -> None:
    """Raises InputError for numbers of a training (see `Trainer`) that are out of range."""
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip_norm is {clip_norm}; it must be above 0")
    if accumulate < 1:
        raise InputError(f"accumulate is {accumulate}; it must be 1 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}; it must be 0 or more")
