"""Limits on the size of computed values: a few constants in a small file may make one of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import optimizer

from onnxqat.errors import InputError
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label

#: Most elements of a value whose size constants decide: a mask of 8,192 positions squared.
LARGEST_MADE = 2**26
#: The same for a value of one axis, each of whose elements inference of shapes keeps in 65 bytes.
LARGEST_LINE = 2**22
#: Most elements of all values made only of constants, which a runtime keeps when it loads the model: 1 GiB of float32.
LARGEST_KEPT = 2**28
#: Most elements of any value at batch size 1: 8 GiB of float32.
LARGEST_VALUE = 2**31
#: Constants of up to this many elements are followed from node to node, to find sizes that are computed.
_FOLLOWED = 1024
#: Operators whose results from constants are no larger: without any other, nothing has to be followed.
_OF_SAME_SIZE = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Shape", "Transpose"})
#: Graphs within graphs: the time in which ONNX Runtime loads a model doubles with each.
DEEPEST = 12


def check_depth(model: ir.Model) -> None:
    """Refuses branches and loops nested so deeply that no runtime loads them in reasonable time.

    Raises:
        InputError: names the innermost node that is still looked at.
    """
    nodes = [(node, 0) for node in model.graph]
    while nodes:
        node, depth = nodes.pop()
        if depth > DEEPEST:
            raise InputError(
                f"model: {label(node)} is within {depth} graphs, the limit here is {DEEPEST}; "
                "export the model again, with fewer branches in branches"
            )
        inner = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH and not a.is_ref()]
        nodes += [(one, depth + 1) for graph in inner for one in graph]


def check_growth(model: ir.Model) -> None:
    """Refuses nodes whose constant inputs ask for far larger values than they read, before anything computes them.

    Raises:
        InputError: names the node.
    """
    if not any(node.op_type in _MADE for node in model.graph.all_nodes()) and not _grows_constants(model):
        return
    stored = sum(_elements(value) for graph in model.graphs() for value in graph.initializers.values())
    growth = _Growth(model.opset_imports.get("", 1), stored)
    copy = model.clone()
    try:
        optimizer.fold_constants(
            copy, input_size_limit=_FOLLOWED, output_size_limit=_FOLLOWED, should_fold=growth.is_followed
        )
    except InputError:
        raise
    except Exception:  # of a broken node, which the runtime refuses with its reason
        copy = model.clone()
    for node in copy.graph.all_nodes():
        growth.check(node)


class _Growth:
    """Follows what nodes make of nothing but constants, by the shapes that single operators infer; no node is computed."""

    def __init__(self, opset: int, stored: float) -> None:
        self._opset = opset
        self._largest = max(LARGEST_MADE, 2 * stored)
        self._kept = max(LARGEST_KEPT, 4 * stored)
        self._made = dict[ir.Value, float]()

    def is_followed(self, node: ir.Node) -> bool | None:
        """Checks a node, and says whether it may be computed to find sizes: False, or None for the default."""
        self.check(node)
        return False if any(_elements(value) > _FOLLOWED for value in node.outputs) else None

    def check(self, node: ir.Node) -> None:
        """Refuses a node that makes too much; nodes come in order of execution."""
        check_made(node)
        given = [value for value in node.inputs if value is not None]
        if not given or not all(value in self._made or constant(value) is not None for value in given):
            return
        for value, found in zip(node.outputs, _inferred(node, self._opset), strict=False):
            if found.HasField("shape") and all(size.HasField("dim_value") for size in found.shape.dim):
                value.dtype = ir.DataType(found.elem_type)
                value.shape = ir.Shape([size.dim_value for size in found.shape.dim])
            self._made[value] = _elements(value)
            if self._made[value] > self._largest:
                raise _too_large(node, self._made[value], self._largest)
        total = sum(self._made.values())
        if total > self._kept:
            raise _too_large(node, total, self._kept)


def _grows_constants(model: ir.Model) -> bool:
    """Whether a node reads only constants, and makes something of them that may be larger."""
    made = set[ir.Value]()
    for node in model.graph.all_nodes():
        given = [value for value in node.inputs if value is not None]
        if given and all(value in made or constant(value) is not None for value in given):
            if node.op_type not in _OF_SAME_SIZE:
                return True
            made.update(node.outputs)
    return False


def _inferred(node: ir.Node, opset: int) -> list[onnx.TypeProto.Tensor]:
    """Types of a node's outputs, as they follow from its inputs only; empty ones where they do not."""
    given = {str(value.name): value for value in node.inputs if value is not None}
    types = {
        name: onnx.helper.make_tensor_type_proto(int(value.dtype), value.shape.numpy())
        for name, value in given.items()
        if value.dtype is not None and value.shape is not None and value.shape.is_static()
    }
    small = {name: constant(value) for name, value in given.items() if _elements(value) <= _FOLLOWED}
    data = {name: onnx.numpy_helper.from_array(array) for name, array in small.items() if array is not None}
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
        found = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, data)
    except Exception:  # of a broken node
        found = {}
    return [found.get(str(value.name), onnx.TypeProto()).tensor_type for value in node.outputs]


def check_made(node: ir.Node) -> None:
    """Refuses a node whose constant inputs ask for too large a result.

    Raises:
        InputError: names it.
    """
    if node.op_type not in _MADE or node.domain not in ("", "ai.onnx"):
        return
    try:
        with np.errstate(all="ignore"):
            sizes = [float(size) for size in _MADE[node.op_type](node)]
    except (TypeError, ValueError, IndexError, ArithmeticError):  # inputs that are not what the operator takes
        return
    made = math.prod(size for size in sizes if not size <= 1)
    limit = max(LARGEST_LINE if len(sizes) == 1 else LARGEST_MADE, 2 * math.prod(_shape(node)))
    if not made <= limit:
        raise _too_large(node, made, limit)


def check_folded(node: ir.Node) -> None:
    """Refuses to compute a node of constants whose result is known to be far larger than what it reads.

    Raises:
        InputError: names it.
    """
    check_made(node)
    limit = max(LARGEST_MADE, 2 * sum(_elements(value) for value in node.inputs))
    for value in node.outputs:
        if _elements(value) > limit:
            raise _too_large(node, _elements(value), limit)


def check_sizes(graph: ir.Graph) -> None:
    """Refuses values that are too large at batch size 1, as far as shapes are known.

    Raises:
        InputError: names the node that computes one.
    """
    for node in graph:
        for value in node.outputs:
            if _elements(value) > LARGEST_VALUE:
                raise _too_large(node, _elements(value), LARGEST_VALUE)


def _too_large(node: ir.Node, made: float, limit: float) -> InputError:
    return InputError(
        f"model: {label(node)} makes a value of {made:.3g} elements, the limit here is {limit:.3g}; "
        "export the model again, with smaller sizes"
    )


def _elements(value: ir.Value | None) -> float:
    """Elements of a value, each size that is not known counted as 1."""
    shape = None if value is None else value.shape
    return math.prod(float(size) for size in shape or () if isinstance(size, int))


def _shape(node: ir.Node) -> list[int]:
    value = node.inputs[0] if node.inputs else None
    shape = None if value is None else value.shape
    return [size if isinstance(size, int) else 1 for size in shape or ()]


def _input(node: ir.Node, index: int) -> NDArray[Any] | None:
    return constant(node.inputs[index]) if len(node.inputs) > index else None


def _stated(index: int) -> Callable[[ir.Node], Iterable[float]]:
    """Sizes that a constant input says."""

    def sizes(node: ir.Node) -> Iterable[float]:
        array = _input(node, index)
        return () if array is None else array.reshape(-1).tolist()

    return sizes


def _times(data: Sequence[float], factors: Iterable[float]) -> list[float]:
    scale = list(factors)
    return [a * b for a, b in zip(data, scale, strict=True)] if len(data) == len(scale) else scale


def _range(node: ir.Node) -> Iterable[float]:
    start, limit, delta = (_input(node, index) for index in range(3))
    if start is None or limit is None or delta is None:
        return ()
    return [np.ceil((np.float64(limit.item()) - np.float64(start.item())) / np.float64(delta.item()))]


def _pad(node: ir.Node) -> Iterable[float]:
    given = node.attributes["pads"].as_ints() if "pads" in node.attributes else list(_stated(1)(node))
    half = len(given) // 2
    data = _shape(node) if len(_shape(node)) == half else [1] * half
    return [size + max(low, 0) + max(high, 0) for size, low, high in zip(data, given[:half], given[half:], strict=True)]


def _resize(node: ir.Node) -> Iterable[float]:
    if "scales" in node.attributes:
        return _times(_shape(node), node.attributes["scales"].as_floats())
    sizes = list(_stated(3)(node))
    scales = next((found for index in (2, 1) if (found := list(_stated(index)(node)))), [])
    return sizes or _times(_shape(node), scales)


#: Sizes of the result, as far as constants say them; none where they do not.
_MADE: Mapping[str, Callable[[ir.Node], Iterable[float]]] = {
    "ConstantOfShape": _stated(0),
    "Range": _range,
    "Expand": _stated(1),
    "Tile": lambda node: _times(_shape(node), _stated(1)(node)),
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "OneHot": lambda node: [*_shape(node), *_stated(1)(node)],
    "CenterCropPad": _stated(1),
    "AffineGrid": _stated(1),
    "Col2Im": _stated(1),
    "MaxUnpool": _stated(2),
    "DFT": _stated(1),
    "MelWeightMatrix": lambda node: [*_stated(0)(node), *_stated(1)(node)],
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _stated(0)),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), lambda node: node.attributes["shape"].as_ints()),
}
