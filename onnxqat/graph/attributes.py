"""Attributes of nodes, checked before any runtime sees them.

ONNX's checker reads types of attributes, not numbers. ONNX Runtime crashes at strides of 0 (a division), and at axes and paddings
beyond its integers. So numbers are checked here, by one table for all operators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.constants import constant
from onnxqat.graph.finite import LAYERS
from onnxqat.graph.naming import label, refused

_INT32 = 2**31 - 1


class Bounds(NamedTuple):
    """Limits of the integers of an attribute.

    Attributes:
        low: smallest value of each.
        high: largest value of each.
        product: largest product of all of them.
    """

    low: int
    high: int = _INT32
    product: int = 2**62


#: By name: an attribute means the same in every operator that has it. Numbers far above any network's are mistakes.
BOUNDS: Mapping[str, Bounds] = {
    **dict.fromkeys(("strides", "dilations", "group", "offset_group", "num_groups", "num_outputs"), Bounds(1)),
    **dict.fromkeys(("num_scan_inputs", "size", "hidden_size"), Bounds(1)),
    **dict.fromkeys(("output_height", "output_width", "pooled_shape"), Bounds(1, 2**15, 2**24)),
    **dict.fromkeys(("block_size", "batch_dims", "output_padding"), Bounds(0)),
    **dict.fromkeys(("sampling_ratio", "max_skip_count"), Bounds(0, 2**10)),
    "kernel_shape": Bounds(1, 2**24, 2**24),
    "pads": Bounds(0, 2**16),
    "output_shape": Bounds(0, product=2**31),
    "shape": Bounds(0, product=2**31),
    "blocksize": Bounds(1, 2**15),
    "p": Bounds(1, 2**10),
}
#: Exceptions by operator: each data element of a ConvTranspose becomes as many as its strides say.
OWN_BOUNDS: Mapping[tuple[str, str], Bounds] = {
    ("ConvTranspose", "strides"): Bounds(1, product=2**14),
    ("ConvTranspose", "dilations"): Bounds(1, product=2**14),
    ("Pad", "pads"): Bounds(-_INT32),
    ("Multinomial", "sample_size"): Bounds(1, 2**22),
    ("TfIdfVectorizer", "ngram_indexes"): Bounds(0, 2**22),
    ("LpNormalization", "p"): Bounds(1, 2),
    ("Resize", "axes"): Bounds(0),
    ("Reshape", "shape"): Bounds(-1),
}
_ANYTHING = Bounds(-_INT32 - 1)
#: Operators with a window that moves over the spatial axes, one number for each of them in these attributes.
_PER_AXIS = {"strides": 1, "dilations": 1, "kernel_shape": 1, "pads": 2, "output_padding": 1, "output_shape": 1}
_WINDOWS = (
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "AveragePool",
    "LpPool",
    "MaxPool",
    "MaxUnpool",
    "Col2Im",
    "DeformConv",
)
_WINDOWS_OF_WEIGHTS = ("Conv", "ConvInteger", "ConvTranspose", "DeformConv")
#: Operators one of whose attributes names an axis of the first input; what others name is checked by the runtime.
_OF_FIRST_INPUT = frozenset(
    {
        *("ArgMax", "ArgMin", "Compress", "Concat", "Gather", "GatherElements", "GatherND", "Hardmax"),
        *("LayerNormalization", "LogSoftmax", "LpNormalization", "RMSNormalization", "Scatter", "ScatterElements"),
        *("Softmax", "Split", "SplitToSequence", "TopK"),
    }
)
#: Constant inputs, by operator and place, in which ONNX Runtime divides by 0 or indexes unchecked.
CONSTANTS: Mapping[tuple[str, int], Bounds] = {
    **dict.fromkeys([("STFT", 1), ("STFT", 3), ("SplitToSequence", 1)], Bounds(1)),
    ("Split", 1): Bounds(0),
}
#: Attributes that may be any 64-bit integer: values and ends of slices.
_ANY = ("value_int", "value_ints", "starts", "ends", "start", "end")


def check_attributes(model: ir.Model) -> None:
    """Refuses attributes of another type than their operator says, or with numbers at which a runtime crashes.

    Raises:
        InputError: names node and attribute.
    """
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, version):
            continue
        _check_types(node, onnx.defs.get_schema(node.op_type, version))
        for check in (_check_numbers, _check_constants, _check_window, _check_group, _check_hidden_size):
            check(node)
        for check in (
            _check_axis,
            _check_order,
            _check_axes,
            _check_blocks,
            _check_parameters,
            _check_vectors,
            _check_value,
        ):
            check(node)


def _check_types(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    for name, formal in schema.attributes.items():
        given = node.attributes.get(name)
        if given is None:
            if formal.required:
                raise refused(node, f"{name} is missing")
            continue
        wanted = ir.AttributeType(formal.type.value)  # type: ignore[attr-defined]
        if isinstance(given.value, bytes):
            raise refused(node, f"{name} is not UTF-8 text")
        if given.is_ref() or given.type != wanted:
            raise refused(node, f"{name} is of type {given.type}, not {wanted}")


def _integers(attribute: ir.Attr) -> Sequence[int]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.INT:
        return (attribute.as_int(),)
    return attribute.as_ints() if attribute.type == ir.AttributeType.INTS else ()


def _check_numbers(node: ir.Node) -> None:
    for name, attribute in node.attributes.items():
        if name not in _ANY:
            bounds = OWN_BOUNDS.get((node.op_type, name)) or BOUNDS.get(name, _ANYTHING)
            _check_bounds(node, name, _integers(attribute), bounds)


def _check_constants(node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        bounds = CONSTANTS.get((node.op_type, index))
        array = None if bounds is None else constant(value)
        if bounds is not None and array is not None:
            _check_bounds(node, f"input {index}", [int(one) for one in array.reshape(-1)], bounds)


def _check_bounds(node: ir.Node, name: str, values: Sequence[int], bounds: Bounds) -> None:
    low, high, product = bounds
    if min(values, default=low) < low:
        raise refused(node, f"{name} is {_shown(values)}, below {low}")
    if max(values, default=low) > high or math.prod(max(value, 1) for value in values[:16]) > product:
        raise refused(node, f"{name} is {_shown(values)}, beyond what runtimes can carry out")


def _check_window(node: ir.Node) -> None:
    """Demands one number for each spatial axis, and an output_padding below the stride."""
    rank = _spatial_rank(node) if node.op_type in _WINDOWS else None
    for name, count in _PER_AXIS.items():
        values = _integers(node.attributes[name]) if name in node.attributes else ()
        if rank is None or not values:
            continue
        if len(values) != count * rank:
            raise refused(node, f"{name} is {_shown(values)}, which does not fit {rank} spatial axes")
        if name == "output_padding" and max(values) >= max(_steps(node)):
            raise refused(node, f"{name} is {_shown(values)}, which is not below the strides")


def _spatial_rank(node: ir.Node) -> int | None:
    if "kernel_shape" in node.attributes:
        return len(_integers(node.attributes["kernel_shape"]))
    shape = None if node.op_type == "Col2Im" else _shape(node, 1 if node.op_type in _WINDOWS_OF_WEIGHTS else 0)
    return None if shape is None else shape.rank() - 2


def _steps(node: ir.Node) -> Sequence[int]:
    given = [_integers(node.attributes[name]) for name in ("strides", "dilations") if name in node.attributes]
    return [1, *(value for values in given for value in values)]


def _check_group(node: ir.Node) -> None:
    """Demands that `group` divides the weight's output channels."""
    if node.op_type not in ("Conv", "ConvTranspose") or "group" not in node.attributes or len(node.inputs) < 2:
        return
    shape, group = _shape(node, 1), node.attributes["group"].as_int()
    channels = None if shape is None or not shape.rank() else shape[0]
    if isinstance(channels, int) and channels % group:
        raise refused(node, f"group is {group}, which does not divide the {channels} channels of its weight")


def _check_hidden_size(node: ir.Node) -> None:
    """Demands a recurrent weight of shape [directions, gates · hidden_size, hidden_size]."""
    shape = _shape(node, 2) if node.op_type in ("LSTM", "GRU", "RNN") and "hidden_size" in node.attributes else None
    size = None if shape is None or not shape.rank() else shape[-1]
    if isinstance(size, int) and node.attributes["hidden_size"].as_int() != size:
        raise refused(node, f"hidden_size is {node.attributes['hidden_size'].as_int()}, its weights have {size}")


def _check_axis(node: ir.Node) -> None:
    shape = _shape(node, 0) if node.op_type in _OF_FIRST_INPUT and "axis" in node.attributes else None
    if shape is None:
        return
    axis, rank = node.attributes["axis"].as_int(), shape.rank()
    if not -rank <= axis < max(rank, 1):
        raise refused(node, f"axis is {axis}, but what it reads has {rank} axes")


def _check_order(node: ir.Node) -> None:
    """Demands that the `perm` of a Transpose names each axis once."""
    order = (
        list(_integers(node.attributes["perm"])) if node.op_type == "Transpose" and "perm" in node.attributes else []
    )
    if sorted(order) != list(range(len(order))):
        raise refused(node, f"perm is {_shown(order)}, which is no order of {len(order)} axes")


def _check_axes(node: ir.Node) -> None:
    if node.op_type != "Resize" or "axes" not in node.attributes:
        return
    axes, shape = node.attributes["axes"].as_ints(), _shape(node, 0)
    if len(set(axes)) != len(axes) or (shape is not None and max(axes, default=0) >= shape.rank()):
        raise refused(node, f"axes is {_shown(axes)}, which are not different axes of what it reads")


def _check_blocks(node: ir.Node) -> None:
    """Demands that the blocks of Col2Im fit into its image."""
    if node.op_type != "Col2Im":
        return
    image, block = (constant(value) for value in node.inputs[1:3])
    if image is None or block is None:
        return
    rank = len(image.reshape(-1))
    default = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank}
    given = {name: _integers(node.attributes[name]) if name in node.attributes else default[name] for name in default}
    if len(block.reshape(-1)) != rank or any(len(given[name]) != len(default[name]) for name in default):
        raise refused(node, "block_shape has other axes than the image and the attributes")
    pads = np.reshape(given["pads"], (2, rank)).sum(axis=0)
    counts = (image + pads - np.multiply(given["dilations"], block - 1) - 1) // np.asarray(given["strides"]) + 1
    shape = _shape(node, 0)
    columns = shape[-1] if shape is not None and shape.rank() else None
    if counts.min(initial=1) < 1 or block.min(initial=1) < 1 or (isinstance(columns, int) and counts.prod() != columns):
        raise refused(node, "block_shape does not fit the image, strides, dilations and pads")


def _check_parameters(node: ir.Node) -> None:
    """Refuses parameters of a layer without elements: kernels read them without a check."""
    for value in node.inputs if node.op_type in LAYERS else ():
        array = constant(value)
        if value is not None and array is not None and not array.size:
            raise InputError(f"initializer {value.name!r} of {label(node)}: has no elements; export the model again")


def _check_vectors(node: ir.Node) -> None:
    """Demands that parameters of a normalization are one number for each channel."""
    given = node.inputs[1:] if node.op_type in ("BatchNormalization", "InstanceNormalization") else ()
    shapes = {array.shape for array in map(constant, given) if array is not None}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
        raise InputError(
            f"model: {label(node)}: its parameters have the shapes {listed}, not one number for each channel; "
            "export the model again"
        )


def _check_value(node: ir.Node) -> None:
    """Demands that a Constant has one value, in one of its attributes."""
    if node.op_type == "Constant" and len(node.attributes) != 1:
        raise InputError(
            f"model: {label(node)} has {len(node.attributes)} values instead of one; export the model again"
        )


def _shape(node: ir.Node, index: int) -> ir.Shape | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else value.shape


def _shown(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
