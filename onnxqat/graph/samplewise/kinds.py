"""Kinds of values, by what becomes of them when a batch is cut into parts."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxqat.graph.constants import constant


class Coupled(Exception):  # noqa: N818  (no error of the user's: the batch stays in one piece)
    """A node lets samples know of each other, or is not known not to; the message says what it does."""


@dataclass(frozen=True)
class Same:
    """Value that is the same for every part: it depends on no sample."""


@dataclass(frozen=True)
class Rows:
    """Array made of samples, which lie one after the other along an axis.

    Attributes:
        axis: the axis.
        each: length along it that belongs to a sample; None where the graph does not say it.
    """

    axis: int
    each: int | None = 1


@dataclass(frozen=True)
class Count:
    """Size that grows with the number of samples.

    Attributes:
        each: size for each sample; None where the graph does not say it.
    """

    each: int | None = 1


#: A size: known, the same for every part but not known, or growing with the samples.
Size: TypeAlias = "int | Count | None"


@dataclass(frozen=True)
class Sizes:
    """Whole numbers of which some grow with the samples, as `Shape` gives them.

    Attributes:
        entries: the numbers.
        scalar: whether it is one number without an axis.
    """

    entries: tuple[Size, ...]
    scalar: bool = False


@dataclass(frozen=True)
class Total:
    """Sum over samples: that of a batch is the sum of those of its parts.

    Attributes:
        value: the value.
    """

    value: ir.Value


@dataclass(frozen=True)
class Mean:
    """Mean over samples: that of a batch is the mean of those of its parts, each weighted.

    Attributes:
        weight: the value by which a part weighs, or the node, a loss over classes, of whose labels the weight is the sum;
            None: its number of samples.
    """

    weight: ir.Value | ir.Node | None = None


Kind: TypeAlias = "Same | Rows | Sizes | Total | Mean"


@dataclass(frozen=True)
class Call:
    """A node and the kinds of what it reads.

    Attributes:
        node: the node.
        kinds: of its inputs; None where one is left out.
        opset: the opset.
        local: names of graph outputs in which places may be counted from the beginning of a part.
    """

    node: ir.Node
    kinds: tuple[Kind | None, ...]
    opset: int
    local: Container[str | None] = ()

    @property
    def first(self) -> Rows:
        """The kind of the first input.

        Raises:
            Coupled: it is not made of samples.
        """
        return self.rows(0)

    def rows(self, index: int) -> Rows:
        """The kind of an input that must be made of samples."""
        kind = self.kinds[index] if index < len(self.kinds) else None
        if not isinstance(kind, Rows):
            raise Coupled("reads samples where none are expected")
        return kind

    def only(self, *indices: int) -> None:
        """Checks that no other inputs are made of samples, or of sizes that grow with them."""
        for index, kind in enumerate(self.kinds):
            if index not in indices and kind is not None and not isinstance(kind, Same):
                raise Coupled("reads samples where none are expected")

    def rank(self, index: int) -> int:
        """Number of axes of an input."""
        return len(self.shape(index))

    def shape(self, index: int) -> Sequence[int | None]:
        """Sizes of an input, None where the graph does not say one."""
        value = self.node.inputs[index]
        if value is None or value.shape is None:
            raise Coupled("reads an array whose number of axes is not known")
        return [size if isinstance(size, int) else None for size in value.shape]

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        found = self.node.attributes.get_int(name, default)
        assert found is not None
        return found

    def axis(self, name: str, default: int, rank: int | None = None) -> int:
        """An attribute that names an axis, counted from the front."""
        found = self.integer(name, default)
        if found >= 0:
            return found
        return found + (self.rank(0) if rank is None else rank)

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def integers(self, name: str, index: int) -> list[int] | None:
        """Numbers that are an attribute in older opsets and a constant input in newer ones; None where neither is given.

        Raises:
            Coupled: they are computed.
        """
        if name in self.node.attributes:
            return list(self.node.attributes.get_ints(name) or ())
        if not self.has(index):
            return None
        array = constant(self.node.inputs[index])
        if array is None:
            raise Coupled(f"takes {name} that are computed")
        return [int(number) for number in array.reshape(-1)]

    def axes(self, index: int) -> list[int] | None:
        """The axes, counted from the front, that are attribute `axes` or the input of that index; None where neither is given."""
        found = self.integers("axes", index)
        return None if found is None else [axis if axis >= 0 else axis + self.rank(0) for axis in found]

    def sizes(self, index: int) -> list[Size]:
        """The whole numbers of an input.

        Raises:
            Coupled: it is not known how many there are.
        """
        kind, value = self.kinds[index], self.node.inputs[index]
        if isinstance(kind, Sizes):
            return list(kind.entries)
        array = constant(value)
        if array is not None:
            return [int(number) for number in array.reshape(-1)]
        count = self.shape(index)
        if len(count) == 1 and count[0] is not None:
            return [None] * count[0]
        if not count:
            return [None]
        raise Coupled("takes sizes that are not known")
