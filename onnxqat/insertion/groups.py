"""The nouns of matching: groups of nodes that become one integer kernel, and nodes that stay in float, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Group:
    """A node that becomes one integer kernel of the target, with what it absorbs.

    Attributes:
        node: the node that computes.
        reads: the activations (and constants in their place) that the kernel reads as integers.
        writes: the value that the kernel produces, behind any activation that it absorbs.
        weight: the initializer whose codes the kernel multiplies with; None for kernels without weights.
        weight_axis: output-channel axis of the weight; None where kernels take one scale only.
        quantizes_weight: whether the weight is quantized; the user may leave it in float.
        constants: constant operands that the kernel reads as integers like those of activations.
    """

    node: ir.Node
    reads: tuple[ir.Value, ...]
    writes: ir.Value
    weight: ir.Value | None = None
    weight_axis: int | None = None
    quantizes_weight: bool = True
    constants: tuple[ir.Value, ...] = ()

    @property
    def reduction_axis(self) -> int | None:
        """Axis of a matrix along which MatMul and Gemm add up products, and blocks divide it; None for other weights."""
        is_matrix = self.node.op_type in ("MatMul", "Gemm") and self.weight_axis is not None
        return 1 - self.weight_axis if is_matrix and self.weight_axis is not None else None


@dataclass(frozen=True, eq=False)
class Skip:
    """A node that stays in float, and why."""

    node: ir.Node
    reason: str


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is known to be float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def inputs(node: ir.Node) -> list[ir.Value]:
    """The node's inputs without the omitted ones."""
    return [value for value in node.inputs if value is not None]
