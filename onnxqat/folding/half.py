"""Deployed models whose floats are float16, for runtimes that take types as they are written; all but inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import io
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name
from onnxqat.graph.naming import label
from onnxqat.graph.opsets import upgraded
from onnxqat.graph.qdq import Quantizer, quantizers
from onnxqat.graph.types import infer

#: First opset in which scales may be float16.
FIRST_OPSET = 19
LARGEST = float(np.finfo(np.float16).max)
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def in_float16(model: ir.Model) -> ir.Model:
    """The model with float16 scales, float weights and values between; operators that take none keep float32 between Casts.

    Raises:
        InputError: a scale is too small for float16, or the operator set cannot be converted to one with such scales.
        UnsupportedModelError: the model has branches or loops.
    """
    _check_plain(model.graph)
    if io.opset(model) < FIRST_OPSET:
        model = upgraded(model, FIRST_OPSET)
    infer(model)
    for quantizer in quantizers(model):
        _check_scale(quantizer)
    narrowed = [node for node in model.graph if _takes_half(node, io.opset(model))]
    halves = _Halves(model.graph)
    for node in narrowed:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _FLOAT and not _is_for_float(node, index):
                node.replace_input_with(index, halves.of(value))
    for node in narrowed:
        for value in [value for value in node.outputs if value.dtype == _FLOAT]:
            halves.narrow(value)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == _FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", _HALF)
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return model


def _check_plain(graph: ir.Graph) -> None:
    for node in graph:
        if any(one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for one in node.attributes.values()):
            raise UnsupportedModelError(
                f"{label(node)}: has graphs of its own, which stay in float32; fold without float16"
            )


class _Halves:
    """Float16 forms of the graph's values, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        """The form of a value that is read as float16: another constant, or what a Cast makes of it."""
        if value not in self._made:
            array = constant(value)
            self._made[value] = (
                self._cast(value, _HALF)
                if array is None
                else constant_value(self._graph, str(value.name), _half(array))
            )
        return self._made[value]

    def narrow(self, value: ir.Value) -> None:
        """Makes a node's output float16; who reads it as float32 reads it through a Cast."""
        readers = list(value.uses())
        cast = self._made.pop(value, None)  # the Cast that stood for it
        value.dtype = _HALF
        if cast is not None:
            made_by = cast.producer()
            assert made_by is not None
            for use in list(cast.uses()):
                use.node.replace_input_with(use.idx, value)
            readers = [use for use in readers if use.node is not made_by]
            self._graph.remove(made_by, safe=True)
        if readers or value.is_graph_output():
            self._widen(value, readers)

    def _widen(self, value: ir.Value, readers: Sequence[Any]) -> None:
        wide = self._cast(value, _FLOAT)
        for use in readers:
            use.node.replace_input_with(use.idx, wide)
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = wide
                name = value.name
                value.name = fresh_value_name(self._graph, f"{name}_half")
                wide.name = name

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = ir.node(
            "Cast", [value], {"to": dtype}, name=fresh_name(self._graph, f"{value.name}_{dtype.name.lower()}")
        )
        output = node.outputs[0]
        output.name, output.type, output.shape = (
            fresh_value_name(self._graph, str(node.name)),
            ir.TensorType(dtype),
            value.shape,
        )
        self._graph.append(node)
        return output


def _half(array: NDArray[Any]) -> NDArray[np.float16]:
    """Numbers beyond float16, as of masks, become its largest."""
    return np.asarray(np.clip(array, -LARGEST, LARGEST), np.float16)


def _check_scale(quantizer: Quantizer) -> None:
    if not (quantizer.scales.astype(np.float16) > 0).all():
        raise InputError(
            f"scale {quantizer.scale.name!r} of {quantizer.source.name!r}: {quantizer.scales.min():.3g} is too small for "
            "float16; fold without float16"
        )


def _takes_half(node: ir.Node, opset: int) -> bool:
    """Whether the operator computes in float16 where it computes in float32."""
    if node.domain or not onnx.defs.has(node.op_type, opset):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
    given = [one for one in enumerate(node.inputs) if not _is_for_float(node, one[0])]
    read, written = _type_names(schema.inputs, given), _type_names(schema.outputs, enumerate(node.outputs))
    # an attribute alone gives what ConstantOfShape and RandomNormal write its type, and a Cast's is set
    follows = node.op_type == "Cast" or written <= read
    return follows and all("tensor(float16)" in allowed.get(name, ()) for name in read | written)


def _type_names(formals: Sequence[Any], values: Iterable[tuple[int, ir.Value | None]]) -> set[str]:
    """Names of the types, in the schema, of those values that are float32."""
    return {
        formals[min(index, len(formals) - 1)].type_str
        for index, value in values
        if value is not None and value.dtype == _FLOAT
    }


def _is_for_float(node: ir.Node, index: int) -> bool:
    """Whether an input is float32 whatever the node computes in: the scales of a Resize."""
    return node.op_type in ("Resize", "Upsample") and index > 0
