"""Text of settings, JSON or YAML, as values; a key that stands twice is refused, where parsers take the last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import json5

from onnxqat.errors import InputError


def from_json(text: str) -> Any:
    """The values of JSON, which may hold comments.

    Raises:
        InputError: a key stands twice.
    """
    objects: list[list[tuple[str, Any]]] = []  # json5 would give a refusal out of its hook as a fault of its grammar

    def kept(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        objects.append(list(pairs))
        return dict(objects[-1])

    values = json5.loads(text, object_pairs_hook=kept)
    for pairs in objects:
        _check(key for key, _ in pairs)
    return values


def from_yaml(yaml: Any, text: str) -> Any:
    """The values of YAML, read by the module `yaml`.

    Raises:
        InputError: a key stands twice.
    """

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)  # as it is written: `<<` adds its keys later
            _check(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    return yaml.load(text, Loader)


def _check(keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"key {key!r} stands twice; leave one out")
        seen.add(key)
