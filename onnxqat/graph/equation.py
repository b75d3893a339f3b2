"""Equations of Einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Equation:
    """An equation without ellipsis and with its output written out.

    Attributes:
        terms: the labels of each operand, one letter per axis.
        output: the labels of the output.
        broadcast: labels that stand for axes of an ellipsis, which may be of size 1 in some operands.
    """

    terms: tuple[str, ...]
    output: str
    broadcast: str


def parse(text: str, ranks: Sequence[int | None]) -> Equation:
    """Parses an Einsum equation for operands of the given ranks (they may be None if there is no ellipsis).

    Without `->` the output has the ellipsis and then, in alphabetical order, the labels that occur once. An ellipsis stands for
    the axes that have no label, aligned to the right.
    """
    left, arrow, output = text.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in text]
    hidden = [
        rank - len(term.replace("...", "")) if rank is not None and "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    extra = "".join(free[: max(hidden)])
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        output = "..." * ("..." in left) + "".join(
            sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        )
    spelled = [term.replace("...", extra[len(extra) - n :]) for term, n in zip(terms, hidden, strict=True)]
    return Equation(tuple(spelled), output.replace("...", extra), extra)
