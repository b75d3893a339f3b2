"""Findings of a check: the node, the fact, the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

#: "refused": the runtime does not load the model, or computes other numbers; "split": a kernel that could be one falls apart;
#: "float": a node does not run on integers.
Kind = Literal["refused", "split", "float"]
#: The remedy where another placement is needed; {0} is the target.
AGAIN = "insert into the float model with --target {0}"


@dataclass(frozen=True)
class Finding:
    """One thing that a target's runtime would do with a node.

    Attributes:
        kind: see `Kind`.
        node: operator and name of the node.
        fact: why.
        remedy: what to do; "" where nothing needs to be done.
    """

    kind: Kind
    node: str
    fact: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.node}: {self.fact}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Findings:
    """All findings about a model.

    Attributes:
        target: the target that it was judged by.
        found: the findings, refusals first.
    """

    target: str
    found: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Findings for which the runtime would not load the model."""
        return self.of("refused")

    def of(self, kind: Kind) -> tuple[Finding, ...]:
        """Findings of one kind."""
        return tuple(one for one in self.found if one.kind == kind)

    def to_json(self) -> str:
        """The findings as JSON text."""
        return json.dumps({"target": self.target, "findings": [asdict(one) for one in self.found]}, indent=2)

    def __rich__(self) -> RenderableType:
        counts = {kind: len(self.of(kind)) for kind in ("refused", "split", "float")}
        line = f"{self.target}: {counts['refused']} refused, {counts['split']} split, {counts['float']} in float"
        return Group(*(Text(f"{one.kind}: {one}") for one in self.found), Text(line))
