"""Initializers' names as PyTorch's: dots make a hierarchy of modules that hold parameters and compute nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


def _never_runs(name: str) -> Callable[..., Any]:
    """The method of that name, which registers a hook that runs with a module, with a warning."""

    def register(self: Scope, *arguments: Any, **settings: Any) -> Any:
        warnings.warn(
            f"{name} on {self._path!r}: never runs, as the ONNX graph computes this layer with all others; "
            "register it on the whole module, or Tensor.register_hook on a parameter",
            stacklevel=2,
        )
        return getattr(torch.nn.Module, name)(self, *arguments, **settings)

    return register


class Scope(torch.nn.Module):  # type: ignore[misc]
    """Holds the parameters whose names begin alike; it is never called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    register_forward_hook = _never_runs("register_forward_hook")
    register_forward_pre_hook = _never_runs("register_forward_pre_hook")
    register_full_backward_hook = _never_runs("register_full_backward_hook")
    register_full_backward_pre_hook = _never_runs("register_full_backward_pre_hook")
    register_backward_hook = _never_runs("register_backward_hook")


def register(root: torch.nn.Module, name: str, tensor: torch.Tensor, *, buffer: bool = False) -> str:
    """Adds a parameter or buffer under an initializer's name, whose dots make a hierarchy as PyTorch's do; returns its name.

    A part that a module cannot hold, empty or taken by something else, gets a trailing underscore.
    """
    path: list[str] = []
    owner = root
    *scopes, leaf = name.split(".")
    for scope in scopes:
        scope = _free(owner, scope, Scope)
        if not hasattr(owner, scope):
            owner.add_module(scope, Scope(".".join([*path, scope])))
        owner = getattr(owner, scope)
        path.append(scope)
    leaf = _free(owner, leaf)
    if buffer:
        owner.register_buffer(leaf, tensor)
    else:
        owner.register_parameter(leaf, torch.nn.Parameter(tensor))
    return ".".join([*path, leaf])


def _free(owner: torch.nn.Module, name: str, *allowed: type) -> str:
    """The name with as many underscores as it takes to be free, or to be that of an allowed kind of thing."""
    while not name or (hasattr(owner, name) and not isinstance(getattr(owner, name), allowed)):
        name += "_"
    return name
