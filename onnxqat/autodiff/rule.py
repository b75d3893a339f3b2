"""Gradient rules: the ways in which an operator can stand on the path from a parameter to the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx_ir as ir

from onnxqat.graph.ops import Ops

_FOLDABLE_SIZE = 64  # largest constant input, in elements, that a rule may read the value of


@dataclass(frozen=True)
class Call:
    """One use of an operator, as its rule sees it.

    Attributes:
        op_type: the operator.
        inputs: its inputs, None where left out; types and shapes are those of the model, where known.
        outputs: its outputs.
        attributes: its attributes as the model has them.
        opset: version of the default domain, 13 to 21.
        wanted: indices of the inputs whose gradient is wanted.
    """

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    attributes: Mapping[str, ir.Attr]
    opset: int
    wanted: frozenset[int] = frozenset()

    def input(self, index: int) -> ir.Value | None:
        """Returns the input, None where it was left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> ir.Value:
        """Returns an input that the operator cannot do without."""
        value = self.inputs[index]
        assert value is not None
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an attribute's value (`default` where the model leaves it out)."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        return list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value

    def constant(self, index: int) -> list[Any] | None:
        """Returns the elements of a small constant input, None if it is left out, large or computed."""
        value = self.input(index)
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size > _FOLDABLE_SIZE:
            return None
        return list(tensor.numpy().reshape(-1).tolist())

    def rank(self, index: int = 0) -> int | None:
        """Returns the number of dimensions of an input where the model says it."""
        value = self.input(index)
        return None if value is None or value.shape is None else len(value.shape)


Formula: TypeAlias = Callable[[Ops, Call], "ir.Value | Sequence[ir.Value]"]
GradientFormula: TypeAlias = Callable[..., "ir.Value | Sequence[ir.Value | None]"]


@dataclass(frozen=True, kw_only=True)
class Differentiable:
    """An operator that gradients pass, in one of the two ways below.

    Attributes:
        inputs: indices of the inputs that get a gradient; None: all.
        steering: indices of float inputs that only control the operator, such as sizes; they need no gradient.
        outputs: how many outputs the node must have: optional ones that it lacks are added.
    """

    inputs: frozenset[int] | None = None
    steering: frozenset[int] = frozenset()
    outputs: int = 0


@dataclass(frozen=True)
class Expanded(Differentiable):
    """The node is replaced by `formula`, made of differentiable operators."""

    formula: Formula


@dataclass(frozen=True)
class Custom(Differentiable):
    """`gradient(op, call, *output gradients)` writes the gradients of the node's inputs.

    An output gradient is None where the loss does not depend on the output. The formula returns one value per
    input, None where there is none, or a single value for only the first input.
    """

    gradient: GradientFormula


@dataclass(frozen=True)
class Stopped:
    """The true gradient is zero almost everywhere, or the result only controls others (shapes, indices, conditions)."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """No gradient; the reason goes into the message that names the node.

    Attributes:
        reason: why there is none.
        codes: integers that go in or come out stand for floats, on which the loss depends through them.
    """

    reason: str
    codes: bool = False


Rule: TypeAlias = Differentiable | Stopped | Refused
RuleOrChoice: TypeAlias = "Rule | Callable[[ir.Node], Rule]"
