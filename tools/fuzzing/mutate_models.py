"""Mutations of models: of their graph, where damage stays readable, and of their bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBERS = [0, 1, -1, 2, -2, 3, 7, 8, 255, 65536, 2**31 - 1, 2**31, -(2**31) - 1, 10**8, 2**40, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, 3.4e38, float("nan"), float("inf"), -float("inf")]
NAMES = [
    "",
    "x",
    "y",
    "w",
    "label",
    "teacher_x",
    "[/red]",
    "\x1b[31m",
    "a\nb",
    "../../x",
    "é" * 300,
    "onnxqat_loss",
    "\u202e",
]
TYPES = [value for value in TensorProto.DataType.values() if value]
OPERATORS = [schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain]


def mutated(source: Path, target: Path, chance: random.Random) -> str:
    """Writes a model with one to three mutations, and says which."""
    proto = onnx.load(source)
    done = []
    for _ in range(chance.choices([1, 2, 3], [6, 2, 1])[0]):
        if not proto.graph.node:
            break
        change = chance.choices(list(_GRAPH), [weight for weight, _ in _GRAPH.values()])[0]
        done.append(f"{change} {_GRAPH[change][1](proto, chance)}")
    if chance.random() < 0.1:
        onnx.save(proto, target, save_as_external_data=True, location="m.data", size_threshold=0)
        done.append(f"external data {_external(target, chance)}")
        return ", ".join(done)
    content = bytearray(proto.SerializeToString())
    if chance.random() < 0.1:
        done.append(f"bytes {_bytes(content, chance)}")
    target.write_bytes(content)
    return ", ".join(done)


def _nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = list(proto.graph.node)
    for node in proto.graph.node:
        for attribute in node.attribute:
            found += attribute.g.node
    return found


def _attribute(proto: onnx.ModelProto, chance: random.Random) -> str:
    nodes = [node for node in _nodes(proto) if node.attribute]
    if not nodes:
        return "none"
    node = chance.choice(nodes)
    attribute = chance.choice(list(node.attribute))
    if attribute.type == attribute.INTS and attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(NUMBERS)
        if chance.random() < 0.2:
            attribute.ints.append(chance.choice(NUMBERS))
    elif attribute.type == attribute.INT:
        attribute.i = chance.choice(NUMBERS)
    elif attribute.type == attribute.FLOAT:
        attribute.f = chance.choice(FLOATS)
    elif attribute.type == attribute.STRING:
        attribute.s = chance.choice([b"", b"\xff", b"linear", b"VALID", b"x" * 1000])
    elif attribute.type == attribute.TENSOR:
        return _tensor(attribute.t, chance)
    return f"{node.op_type}.{attribute.name}"


def _new_attribute(proto: onnx.ModelProto, chance: random.Random) -> str:
    node = chance.choice(_nodes(proto))
    names = list(onnx.defs.get_schema(node.op_type, 17).attributes) if onnx.defs.has(node.op_type, 17) else []
    name = chance.choice([*names, "axis", "nothing"])
    number = chance.choice(NUMBERS)
    value = chance.choice([number, [number], [1, number], [number] * 4, 1.5, "text", [1.5], ["a"], [0, 0]])
    node.attribute.append(helper.make_attribute(name, value))
    return f"{node.op_type}.{name}={value!r}"


def _initializer(proto: onnx.ModelProto, chance: random.Random) -> str:
    return _tensor(chance.choice(list(proto.graph.initializer)), chance) if proto.graph.initializer else "none"


def _tensor(tensor: onnx.TensorProto, chance: random.Random) -> str:
    how = chance.choice(["value", "value", "value", "all", "type", "dims", "shape", "cut", "empty", "cast"])
    if how == "type":
        tensor.data_type = chance.choice(TYPES)
    elif how == "dims" and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(NUMBERS)
    elif how == "cut":
        tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)]
    else:
        _array(tensor, how, chance)
    return f"{tensor.name!r} {how}"


def _array(tensor: onnx.TensorProto, how: str, chance: random.Random) -> None:
    try:
        array = numpy_helper.to_array(tensor).copy()
    except (TypeError, ValueError):
        return
    numbers: list[float] = FLOATS if array.dtype.kind == "f" else list(NUMBERS)
    with np.errstate(all="ignore"):
        if how == "value" and array.size:
            array.reshape(-1)[chance.randrange(array.size)] = _as_type(chance.choice(numbers), array.dtype)
        elif how == "all":
            array[...] = _as_type(chance.choice(numbers), array.dtype)
        elif how == "shape":
            array = chance.choice([array.reshape(-1), array[None], array.reshape(*array.shape, 1), array.T])
        elif how == "empty":
            array = array.reshape(-1)[:0]
        elif how == "cast":
            array = array.astype(
                chance.choice([np.float64, np.float16, np.int32, np.int8, np.uint8, np.int64, np.bool_])
            )
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _as_type(number: float, dtype: np.dtype) -> object:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return max(min(int(number), limits.max), limits.min)
    return number


def _wiring(proto: onnx.ModelProto, chance: random.Random) -> str:
    node = chance.choice(_nodes(proto))
    names = [name for one in _nodes(proto) for name in (*one.input, *one.output)] + ["", "nothing", "x"]
    how = chance.choice(["input", "input", "output", "more", "fewer", "swap"])
    if how == "input" and node.input:
        node.input[chance.randrange(len(node.input))] = chance.choice(names)
    elif how == "output" and node.output:
        node.output[chance.randrange(len(node.output))] = chance.choice(names)
    elif how == "more":
        node.input.append(chance.choice(names))
    elif how == "fewer" and node.input:
        node.input.pop()
    elif how == "swap" and len(node.input) > 1:
        node.input.reverse()
    return f"{node.op_type} {how}"


def _operator(proto: onnx.ModelProto, chance: random.Random) -> str:
    node = chance.choice(_nodes(proto))
    was, node.op_type = node.op_type, chance.choice([*OPERATORS, "Nothing", "[/red]", ""])
    if chance.random() < 0.1:
        node.domain = chance.choice(["ai.onnx", "com.microsoft", "ai.onnx.ml", "\x1b]0;x\a"])
    return f"{was} is {node.op_type}"


def _structure(proto: onnx.ModelProto, chance: random.Random) -> str:
    graph = proto.graph
    how = chance.choice(
        ["drop node", "double node", "move node", "drop output", "drop input", "drop all outputs", "no nodes"]
    )
    index = chance.randrange(len(graph.node)) if graph.node else 0
    if how == "drop node" and graph.node:
        del graph.node[index]
    elif how in ("double node", "move node") and graph.node:
        graph.node.add().CopyFrom(graph.node[index])
        if how == "move node":
            del graph.node[index]
    elif how == "drop output" and graph.output:
        graph.output.pop()
    elif how == "drop input" and graph.input:
        graph.input.pop()
    elif how == "drop all outputs":
        del graph.output[:]
    elif how == "no nodes":
        del graph.node[:]
    return how


def _name(proto: onnx.ModelProto, chance: random.Random) -> str:
    """Renames a value everywhere, or a node, or the graph."""
    name = chance.choice(NAMES)
    if chance.random() < 0.3:
        chance.choice(_nodes(proto)).name = name
        return f"of a node {name[:20]!r}"
    values = [value for node in _nodes(proto) for value in (*node.input, *node.output) if value]
    old = chance.choice(values) if values else ""
    for node in _nodes(proto):
        node.input[:] = [name if value == old else value for value in node.input]
        node.output[:] = [name if value == old else value for value in node.output]
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        if item.name == old:
            item.name = name
    return f"{old!r} is {name[:20]!r}"


def _interface(proto: onnx.ModelProto, chance: random.Random) -> str:
    value = chance.choice([*proto.graph.input, *proto.graph.output, *proto.graph.value_info, onnx.ValueInfoProto()])
    shape = value.type.tensor_type.shape
    how = chance.choice(["type", "size", "rank", "no shape", "sequence"])
    if how == "type":
        value.type.tensor_type.elem_type = chance.choice([*TYPES, 0, 99])
    elif how == "size" and shape.dim:
        shape.dim[chance.randrange(len(shape.dim))].dim_value = chance.choice(NUMBERS)
    elif how == "rank":
        shape.dim.add().dim_value = chance.choice([0, 1, 8])
    elif how == "no shape":
        value.type.tensor_type.ClearField("shape")
    elif how == "sequence":
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    return f"{value.name!r} {how}"


def _header(proto: onnx.ModelProto, chance: random.Random) -> str:
    how = chance.choice(["opset", "opset", "ir", "domain", "no opset", "metadata", "doc"])
    if not proto.opset_import:
        proto.opset_import.add().version = 17
    if how == "opset":
        proto.opset_import[0].version = chance.choice([*range(1, 27), 0, -1, 2**40])
        return f"opset {proto.opset_import[0].version}"
    if how == "ir":
        proto.ir_version = chance.choice([0, 3, 4, 7, 9, 11, 13, 99, 2**60])
    elif how == "domain":
        proto.opset_import[0].domain = chance.choice(["ai.onnx", "other", "\x1b[0m"])
    elif how == "no opset":
        del proto.opset_import[:]
    elif how == "metadata":
        helper.set_model_props(proto, {f"onnxqat.{key}": chance.choice(NAMES) for key in ("target", "bias", "float")})
    else:
        proto.doc_string = proto.graph.doc_string = "\x1b[2J" * 100
    return how


def _nesting(proto: onnx.ModelProto, chance: random.Random) -> str:
    """Puts the last node into Ifs within Ifs."""
    depth = chance.choice([1, 3, 10, 25])
    last = proto.graph.node[-1]
    if last.op_type == "If":
        return "as it was"  # twice the depth is more than protobuf itself parses
    outputs = list(last.output)
    node = _as_output(last, outputs, "then")
    for level in range(depth):
        other = _as_output(last, outputs, f"e{level}")
        branches = {"then_branch": _branch(node, f"t{level}"), "else_branch": _branch(other, f"e{level}")}
        node = helper.make_node("If", ["nested_condition"], outputs, **branches)
        if level < depth - 1:
            node = _as_output(node, outputs, f"t{level}")
    last.CopyFrom(node)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "nested_condition"))
    return str(depth)


def _as_output(node: onnx.NodeProto, outputs: list[str], suffix: str) -> onnx.NodeProto:
    """A copy of a node whose outputs have names of their own."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}_{suffix}" for name in outputs]
    return copy


def _branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(one, 1, None) for one in node.output])


def _external(target: Path, chance: random.Random) -> str:
    proto = onnx.load(target, load_external_data=False)
    tensors = [tensor for tensor in proto.graph.initializer if tensor.external_data]
    if not tensors:
        return "none"
    entry = chance.choice(list(chance.choice(tensors).external_data))
    entry.value = chance.choice(
        [
            "",
            "-1",
            "9" * 5000,
            "a\0b",
            "x" * 5000,
            "../m.data",
            "/etc/passwd",
            ".",
            "0",
            "7",
            "1e3",
            str(2**63),
            "m.onnx",
        ]
    )
    target.write_bytes(proto.SerializeToString())
    return f"{entry.key}={entry.value[:20]!r}"


def _bytes(content: bytearray, chance: random.Random) -> str:
    how = chance.choice(["flip", "cut", "insert", "repeat"])
    position = chance.randrange(len(content))
    if how == "flip":
        for _ in range(chance.choice([1, 8, 64])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[position:]
    elif how == "insert":
        content[position:position] = chance.randbytes(chance.choice([1, 8, 100]))
    else:
        content += content[position:]
    return how


_Mutation = Callable[[onnx.ModelProto, random.Random], str]
#: Mutations of graphs, and how often each comes.
_GRAPH: dict[str, tuple[int, _Mutation]] = {
    "attribute": (6, _attribute),
    "new attribute": (4, _new_attribute),
    "initializer": (6, _initializer),
    "wiring": (4, _wiring),
    "operator": (3, _operator),
    "structure": (2, _structure),
    "name": (3, _name),
    "interface": (3, _interface),
    "header": (2, _header),
    "nesting": (1, _nesting),
}
