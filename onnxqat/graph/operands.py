"""Inputs of nodes, checked before anything computes with them: types that the operator takes, weights that fit each other.

ONNX's checker counts inputs and reads no types; most code relies on both. Before shapes are inferred, only constants and inputs
are trusted: what a file says of other values may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
import onnx_ir as ir

from onnxqat.graph.indices import Sizes
from onnxqat.graph.naming import refused


def check_operands(model: ir.Model, *, inferred: bool = False) -> None:
    """Refuses nodes whose inputs are of types that the operator does not take, or whose weights do not fit.

    Args:
        model: the model.
        inferred: whether its shapes are inferred, and not just what the file says; types have been checked by then.

    Raises:
        InputError: names node and input.
    """
    version = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, version):
            continue
        sizes = Sizes(node, inferred)
        if not inferred:
            schema = onnx.defs.get_schema(node.op_type, version)
            _check_presence(node, schema)
            _check_types(sizes, schema)
        fault = _FAULTS[node.op_type](sizes) if node.op_type in _FAULTS else None
        if fault is not None:
            raise refused(node, fault)


def _check_presence(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """Checks that only optional inputs and outputs are left out.

    ONNX's checker does not look, and ONNX Runtime reads what is not there where any number of them may be given.
    """
    for what, values, formals in (
        ("input", [value is not None for value in node.inputs], schema.inputs),
        ("output", [bool(value.name) for value in node.outputs], schema.outputs),
    ):
        for place, present in enumerate(values):
            formal = formals[min(place, len(formals) - 1)] if formals else None
            if (
                formal is not None
                and not present
                and formal.option != onnx.defs.OpSchema.FormalParameterOption.Optional
            ):
                raise refused(node, f"leaves out {what} {place}, {formal.name!r}, which is not optional")


def _check_types(sizes: Sizes, schema: onnx.defs.OpSchema) -> None:
    """Checks the type of each input, and that all inputs that share a type in the schema (`T`) have the same."""
    found = dict[str, ir.DataType]()
    for place, value in enumerate(sizes.node.inputs):
        dtype = sizes.dtype(place)
        formal = schema.inputs[min(place, len(schema.inputs) - 1)] if schema.inputs else None
        if value is None or dtype is None or formal is None:
            continue
        if f"tensor({_called(dtype)})" not in formal.types:
            raise refused(sizes.node, f"its input {value.name!r} is of type {_called(dtype)}, which it does not take")
        if formal.is_homogeneous and found.setdefault(formal.type_str, dtype) != dtype:
            other = _called(found[formal.type_str])
            raise refused(
                sizes.node,
                f"its input {value.name!r} is of type {_called(dtype)}, but another input that must match it is {other}",
            )


def _called(dtype: ir.DataType) -> str:
    return dtype.name.lower()


def _gemm(sizes: Sizes) -> str | None:
    """A' · B' + C, with A' [M, K], B' [K, N] and C that broadcasts to [M, N]."""
    node, (data, weight, bias) = sizes.node, (sizes.of(place) for place in range(3))
    for name, shape in (("data", data), ("a weight", weight)):
        if shape is not None and len(shape) != 2:
            return f"reads {name} of {len(shape)} axes, not 2"
    rows, read = _pair(data, turned=bool(node.attributes.get_int("transA", 0)))
    given, columns = _pair(weight, turned=bool(node.attributes.get_int("transB", 0)))
    if _differ(read, given):
        return f"reads {read} values in a row, its weight takes {given}"
    if bias is not None and (
        len(bias) > 2 or any(_grows(*pair) for pair in zip(bias[::-1], (columns, rows), strict=False))
    ):
        return f"its bias of shape {bias} does not fit {columns} results"
    return None


def _pair(shape: list[int | None] | None, *, turned: bool) -> tuple[int | None, int | None]:
    first, second = shape or (None, None)
    return (second, first) if turned else (first, second)


def _grows(size: int | None, whole: int | None) -> bool:
    """Whether an axis cannot be broadcast to the whole one."""
    return size != 1 and _differ(size, whole)


def _differ(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one != other


def _convolution(sizes: Sizes) -> str | None:
    """A weight [M, C/group, …] and a bias [M]; of ConvTranspose a weight [C, M/group, …]."""
    weight, group = sizes.of(1), sizes.node.attributes.get_int("group", 1)
    if weight is None or len(weight) < 3:
        return None if weight is None else f"reads a weight of {len(weight)} axes"
    inner = None if weight[1] is None else weight[1] * group
    made, read = (weight[0], inner) if sizes.node.op_type == "Conv" else (inner, weight[0])
    data, bias = sizes.of(0), sizes.of(2)
    if data is not None and len(data) == len(weight) and _differ(data[1], read):
        return f"reads data of {data[1]} channels with a weight for {read}"
    if bias is not None and (len(bias) != 1 or _differ(bias[0], made)):
        return f"its bias of shape {bias} does not fit {made} channels"
    return None


#: What is wrong with the inputs of a node of these operators.
_FAULTS: Mapping[str, Callable[[Sizes], str | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
}
