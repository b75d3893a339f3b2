"""Types and shapes of values, as far as they can be told: one node that inference gives up at does not hide all others."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxqat.errors import InputError
from onnxqat.graph.attributes import check_attributes
from onnxqat.graph.indices import check_indices
from onnxqat.graph.limits import check_sizes
from onnxqat.graph.naming import label
from onnxqat.graph.operands import check_operands
from onnxqat.graph.ops import BLOCKED

_NOT_TENSORS = frozenset(
    {
        "Optional",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)


def infer(model: ir.Model) -> None:
    """Infers shapes and types in place; where inference fails at a node, types follow from what its operator asks for.

    A shape that the model states counts only as far as inference does not contradict it: gradient formulas follow shapes, and
    would be wrong with them. Where a size is stated for an axis of the inputs that is free, the stated shapes are those of the
    model before its batch was freed, and none of them counts.
    """
    free = {size.value for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    nodes = [node for node in model.graph if node.domain != BLOCKED]  # of those, inference knows nothing
    stated = {value: value.shape for node in nodes for value in node.outputs if value.shape is not None}
    for value in stated:
        value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    if not any(_fixes(shape, value.shape, free - {None}) for value, shape in stated.items()):
        for value, shape in stated.items():
            value.shape = _merged(shape, value.shape)
    check_ranks(model)
    check_attributes(model)
    check_indices(model, inferred=True)
    check_operands(model, inferred=True)
    check_sizes(model.graph)
    version = model.opset_imports[""]
    for node in model.graph:
        if any(value.dtype is None for value in node.outputs) and onnx.defs.has(node.op_type, version):
            _complete(node, onnx.defs.get_schema(node.op_type, version))
    _clear_sequences(model)


def infer_more(model: ir.Model) -> None:
    """Infers, in place, what follows from the types and shapes that are known; nothing is checked."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    _clear_sequences(model)


def _clear_sequences(model: ir.Model) -> None:
    """Takes types from sequences: the pass takes one for a tensor like its elements."""
    for node in model.graph:
        if node.op_type in _NOT_TENSORS:
            for value in node.outputs:
                value.type, value.shape = None, None


def check_ranks(model: ir.Model) -> None:
    """Refuses convolutions whose data and weight have different numbers of axes: ONNX Runtime 1.19 crashes at them.

    Raises:
        InputError: names the node.
    """
    for node in model.graph:
        pair = node.inputs[:2] if node.op_type in ("Conv", "ConvTranspose") else ()
        ranks = [value.shape.rank() for value in pair if value is not None and value.shape is not None]
        if len(ranks) == 2 and (ranks[0] != ranks[1] or ranks[0] < 3):
            raise InputError(
                f"model: {label(node)} reads data of {ranks[0]} axes with a weight of {ranks[1]}; "
                "export the model again"
            )


def _merged(stated: ir.Shape, inferred: ir.Shape | None) -> ir.Shape:
    """The inferred shape, with the sizes that only the stated one knows."""
    if inferred is None or inferred.rank() != stated.rank():
        return stated if inferred is None else inferred
    return ir.Shape(
        [
            s if _unknown(i) or (isinstance(s, int) and not isinstance(i, int)) else i
            for s, i in zip(stated, inferred, strict=True)
        ]
    )


def _fixes(stated: ir.Shape, inferred: ir.Shape | None, free: Container[str | None]) -> bool:
    """Whether a shape states a size where inference finds a free axis of the inputs."""
    if inferred is None or inferred.rank() != stated.rank():
        return False
    pairs = zip(stated, inferred, strict=True)
    return any(isinstance(s, int) and not isinstance(i, int) and i.value in free for s, i in pairs)


def _unknown(size: int | ir.SymbolicDim) -> bool:
    return not isinstance(size, int) and size.value is None


def _complete(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """Gives values without a type that of another one whose type the schema says is the same (`T`)."""
    parts = [*_formal(schema.inputs, node.inputs), *_formal(schema.outputs, node.outputs)]
    known = {kind: value.dtype for kind, value in parts if value.dtype is not None}
    for kind, value in parts:
        if value.dtype is None and kind in known:
            value.dtype = known[kind]


def _formal(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], actuals: Sequence[ir.Value | None]
) -> Iterator[tuple[str, ir.Value]]:
    """Each value with the name of its type in the schema; the last formal parameter may stand for several."""
    for index, value in enumerate(actuals):
        formal = formals[min(index, len(formals) - 1)]
        if value is not None and (index < len(formals) or formal.is_homogeneous):
            yield formal.type_str, value
