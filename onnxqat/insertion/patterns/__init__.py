"""Patterns of nodes that become one kernel of the target: one file per operator family, in it `MATCHERS`, a row per operator."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

import onnx_ir as ir

from onnxqat.insertion.groups import Group, Skip
from onnxqat.targets import Target

Matcher = Callable[[ir.Node, Target], Group | Skip]

_FAMILIES = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
#: The rows of all families; `decomposed` has none, since it tells functions of several nodes.
MATCHERS: dict[str, Matcher] = {
    operator: match for family in _FAMILIES for operator, match in vars(family).get("MATCHERS", {}).items()
}
