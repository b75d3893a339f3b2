"""Text of settings, JSON or YAML, as values; a key that stands twice is refused, where parsers take the last."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import json5

from onnxqat.errors import InputError


def from_json(text: str) -> Any:
    """The values of JSON, which may hold comments.

    Raises:
        InputError: a key stands twice.
    """
    return json5.loads(text, object_pairs_hook=_once)


def from_yaml(yaml: Any, text: str) -> Any:
    """The values of YAML, read by the module `yaml`.

    Raises:
        InputError: a key stands twice.
    """

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)  # as it is written: `<<` adds its keys later
            _once((key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    return yaml.load(text, Loader)


def _once(pairs: Iterable[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    found: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"key {key!r} stands twice; leave one out")
        found[key] = value
    return found
