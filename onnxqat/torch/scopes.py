"""Initializers' names as PyTorch's: dots make a hierarchy of modules that hold parameters and compute nothing."""

from __future__ import annotations

import torch


class Scope(torch.nn.Module):  # type: ignore[misc]
    """Holds the parameters whose names begin alike."""


def register(root: torch.nn.Module, name: str, tensor: torch.Tensor, *, buffer: bool = False) -> str:
    """Adds a parameter or buffer under an initializer's name, whose dots make a hierarchy as PyTorch's do; returns its name.

    A part that a module cannot hold, empty or taken by something else, gets a trailing underscore.
    """
    owner, path = root, []
    *scopes, leaf = name.split(".")
    for scope in scopes:
        scope = _free(owner, scope, Scope)
        if not hasattr(owner, scope):
            owner.add_module(scope, Scope())
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
