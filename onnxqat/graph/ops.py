"""The writer of nodes: ONNX operators called like functions, their results typed where the operator's schema says the type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import onnx
import onnx_ir as ir
from onnxscript import BuilderFeature, TapeBuilder

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
#: ONNX Runtime's operators on channels in blocks.
BLOCKED = "com.microsoft.nchwc"
#: Domain of the functions that stand for a fast kernel of some engine; see `autodiff.kernels`.
KERNELS = "onnxqat.kernel"
_FIXED_TYPES = {"tensor(int64)": ir.DataType.INT64, "tensor(bool)": ir.DataType.BOOL}


class Ops(TapeBuilder):  # type: ignore[misc]  # onnxscript is not typed
    """Writes ONNX nodes of one opset: `op.Add(x, 1.0)`; a Python number takes the type of its fellow operand."""

    _nodes: list[ir.Node]

    def __init__(self, opset: int) -> None:
        super().__init__(features=BuilderFeature.CAST_INPUTS)
        self.opset = opset

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """All nodes written so far."""
        return tuple(self._nodes)

    def named(self, place: str) -> Sequence[ir.Node]:
        """Names the nodes after the place that they are written for, and returns them."""
        for number, node in enumerate(self.nodes):
            node.name = f"{place}/{node.op_type}_{number}"
        return self.nodes

    def _get_default_opset_version(self, domain: str = "") -> int | None:
        return None if domain else self.opset

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        return partial(self.one, op_type)

    def one(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """Writes a node with one output."""
        return self.many(op_type, *inputs, **attributes)[0]

    def many(
        self, op_type: str, *inputs: Any, _outputs: int = 1, _domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Writes a node with several outputs."""
        version = None if _domain else self.opset
        made = self.call_op(op_type, inputs, attributes, domain=_domain, version=version, outputs=_outputs)
        outputs = [made] if isinstance(made, ir.Value) else list(made)
        set_types(self.nodes[-1], self.opset)
        return outputs

    def reduce(self, kind: str, x: ir.Value, axes: Sequence[int] | ir.Value | None, *, keepdims: bool) -> ir.Value:
        """Writes `Reduce<kind>` over `axes` (None: all); they are an input from opset 18 on, 13 for ReduceSum."""
        keep = int(keepdims)
        if axes is None:
            return self.one(f"Reduce{kind}", x, keepdims=keep)
        if self.opset >= (13 if kind == "Sum" else 18):
            return self.one(f"Reduce{kind}", x, self.ints(axes), keepdims=keep)
        return self.one(f"Reduce{kind}", x, axes=axes, keepdims=keep)

    def ints(self, numbers: Sequence[int] | ir.Value) -> ir.Value:
        """Returns `numbers` as an int64 vector."""
        if isinstance(numbers, ir.Value):
            return numbers
        return self.one("Constant", value=ir.tensor(list(numbers), dtype=ir.DataType.INT64))

    def like(self, number: float, x: ir.Value) -> ir.Value:
        """Returns the scalar `number` in the element type of `x`."""
        if x.dtype is not None:
            return self.one("Constant", value=ir.tensor(number, dtype=x.dtype))
        return self.one("CastLike", self.one("Constant", value=ir.tensor(float(number), dtype=ir.DataType.FLOAT)), x)

    def kernel(self, name: str, *inputs: Any, _outputs: int = 1, **attributes: Any) -> Sequence[ir.Value]:
        """Writes a call of a function of `KERNELS`, for which some engines have one fast kernel."""
        made = self.many(name, *inputs, _domain=KERNELS, _outputs=_outputs, **attributes)
        known = next((v.type for v in inputs if isinstance(v, ir.Value) and v.dtype in FLOAT_TYPES), None)
        for value in made:
            value.type = known
        return made

    def masked(self, x: ir.Value, mask: ir.Value) -> ir.Value:
        """Returns `x` where the mask, of the same shape, holds, else 0; NaN where x is not finite and the mask does not hold.

        The backward kernel of ONNX Runtime's FakeQuant is this, and ten times as fast as Where.
        """
        return self.kernel("FakeQuantGrad", x, mask)[0]

    def finite(self, slope: ir.Value) -> ir.Value:
        """Returns a derivative that has no bound at an edge of the domain, with 0 wherever it is infinite or undefined.

        Quantized values lie at edges often, at exact zeros first of all. The gradient that is to be multiplied there may be
        0, where what follows does not read the element, and 0·∞ would undo it. (`masked` multiplies, and would give NaN.)
        """
        bounded = self.one("Less", self.one("Abs", slope), self.like(math.inf, slope))
        return self.one("Where", bounded, slope, self.like(0.0, slope))

    def sum_to(self, gradient: ir.Value, x: ir.Value, y: ir.Value | None = None) -> ir.Value:
        """Sums the gradient of a broadcast result `y` back to the shape of the operand `x`."""
        repeated = None if y is None else repeated_axes(x, y)
        if repeated == []:
            return gradient
        shape = self.one("Shape", x)
        axes = self._repeated_axes(shape, gradient) if repeated is None else self.ints(repeated)
        summed = self.one("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)
        return self.one("Reshape", summed, shape)

    def _repeated_axes(self, shape: ir.Value, gradient: ir.Value) -> ir.Value:
        """Axes of the gradient that an operand of this shape lacks or has as 1, where only the data tells."""
        sizes = self.one("Shape", gradient)
        lacking = self.one("Sub", self.one("Shape", sizes), self.one("Shape", shape))
        ones = self.one("ConstantOfShape", lacking, value=ir.tensor([1], dtype=ir.DataType.INT64))
        same = self.one("Equal", self.one("Concat", ones, shape, axis=0), sizes)
        return self.one("Squeeze", self.one("NonZero", self.one("Not", same)), self.ints([0]))


def repeated_axes(x: ir.Value, y: ir.Value) -> list[int] | None:
    """Axes of `y` along which broadcasting repeated the operand `x`; None where the shapes do not tell."""
    if x.shape is None or y.shape is None:
        return None
    lacking = len(y.shape) - len(x.shape)
    axes = list(range(lacking))
    for axis, (own, whole) in enumerate(zip(x.shape, y.shape[lacking:], strict=True), lacking):
        if own == 1 and whole != 1:
            axes.append(axis)
        elif not isinstance(own, int) and (own != whole or own.value is None):
            return None
    return axes


def same_shape(x: ir.Value, y: ir.Value) -> bool:
    """Whether the shapes are known to be equal: of equal sizes or names of sizes."""
    if x.shape is None or y.shape is None or len(x.shape) != len(y.shape):
        return False
    return all(a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(x.shape, y.shape, strict=True))


def set_types(node: ir.Node, opset: int) -> None:
    """Gives outputs their element type where the operator's schema ties it to an input or an attribute."""
    if node.op_type in ("Cast", "Constant"):
        node.outputs[0].type = ir.TensorType(_stated_type(node))
        return
    for output, variable in zip(node.outputs, _output_types(node.op_type, node.domain, opset), strict=False):
        if output.type is None and isinstance(variable, ir.DataType):
            output.type = ir.TensorType(variable)
        elif output.type is None and isinstance(variable, tuple):
            sources = (node.inputs[i] for i in variable if i < len(node.inputs))
            output.type = next((source.type for source in sources if source is not None and source.type), None)


def _stated_type(node: ir.Node) -> ir.DataType:
    """Returns the element type that a Cast or a Constant names."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", 1) or 1)
    tensor = node.attributes.get_tensor("value", None)
    if tensor is not None:
        return tensor.dtype
    return ir.DataType.INT64 if any(name.startswith("value_int") for name in node.attributes) else ir.DataType.FLOAT


@cache
def _output_types(op_type: str, domain: str, opset: int) -> tuple[ir.DataType | tuple[int, ...] | None, ...]:
    """Returns for each output its fixed element type, or the indices of the inputs that it shares its type with."""
    if not onnx.defs.has(op_type, max_inclusive_version=opset, domain=domain):
        return ()
    schema = onnx.defs.get_schema(op_type, opset, domain)
    tied: dict[str, tuple[int, ...]] = {}
    for index, formal in enumerate(schema.inputs):
        tied[formal.type_str] = (*tied.get(formal.type_str, ()), index)
    fixed = {c.type_param_str: c.allowed_type_strs[0] for c in schema.type_constraints if len(c.allowed_type_strs) == 1}
    names = [fixed.get(output.type_str, output.type_str) for output in schema.outputs]
    return tuple(tied.get(name, _FIXED_TYPES.get(name)) for name in names)
