"""The fusion report: which nodes of a deployed model run as integer kernels in a runtime, which do not, and why.

The runtime is asked, not guessed at: it gets a copy of the model whose nodes and values carry numbers in their names, and the
numbers are found again in the graph that it executes. Only the reasons for what stayed in float are worked out here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from onnxqat.graph import io, qdq
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import REARRANGING, REPEATING, SELECTING
from onnxqat.graph.naming import label
from onnxqat.graph.types import infer

Kind = Literal["integer", "weight-only", "float", "absorbed"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Move data only, or vanish in the node before them: what they run on is decided by their neighbours.
NOT_REPORTED = (
    REARRANGING
    | (SELECTING - {"GatherElements"})
    | (REPEATING - {"Resize"})
    | {"QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Identity", "Dropout", "Constant", "Cast"}
    | {"Shape", "Size", "ConstantOfShape", "Range"}
)
#: Numbers as they stand in names: of a node, and of the node that computes a value.
_NODE = re.compile(r"onnxqatN(\d+)_")
_VALUE = re.compile(r"onnxqatV(\d+)_")


@dataclass(frozen=True)
class Kernel:
    """Fate of one node of the deployed model in the runtime.

    Attributes:
        node: its name.
        op_type: its operator.
        kernel: name of what the runtime executes for it; "" where it executes nothing.
        kind: "integer": reads integer activations; "weight-only": float activations, integer weights; "float"; "absorbed":
            merged into a neighbour, or folded away.
        reason: why it is not an integer kernel, or is one against the model; "" where it is rightly, or is absorbed.
        purpose: why `insert` left it in float; "" if it did not.
        executed: name of the runtime's own node for it, in the marked copy of the model; "" where it has none, or tells none.
    """

    node: str
    op_type: str
    kernel: str
    kind: Kind
    reason: str
    purpose: str = ""
    executed: str = ""

    @property
    def is_weighted(self) -> bool:
        """Whether it is one of the layers that hold a model's weights."""
        return self.op_type in WEIGHTED


@dataclass(frozen=True)
class Placed:
    """Division of a deployed model between an NPU and the CPU.

    Attributes:
        partitions: number of graphs of the NPU; between them the CPU works.
        on_cpu: names of the nodes on the CPU, without the quantizers of the model's own inputs and outputs.
        whole: whether the runtime also makes a session where nothing may go to the CPU.
    """

    partitions: int
    on_cpu: tuple[str, ...]
    whole: bool

    @property
    def sentence(self) -> str:
        """Finding in one line."""
        if self.whole and self.partitions == 1:
            return "NPU: the whole model in one partition, nothing on the CPU (its use is forbidden and the session is made)."
        where = f"{len(self.on_cpu)} nodes on the CPU: {', '.join(map(repr, self.on_cpu[:4]))}" if self.on_cpu else ""
        return f"NPU: {self.partitions} partitions{', ' if where else ''}{where}."


def purpose(node: ir.Node) -> str:
    """Returns why `insert` left the node in float; "" if it did not."""
    return str(node.metadata_props.get("onnxqat.float", ""))


def marked(model: ir.Model) -> ir.Model:
    """A copy of the model whose n-th node is named `onnxqatN<n>_` and its outputs `onnxqatV<n>_<index>`."""
    model = io.load(model)
    for number, node in enumerate(model.graph):
        node.name = f"onnxqatN{number}_"
        for index, value in enumerate(node.outputs):
            if value.name:
                value.name = f"onnxqatV{number}_{index}"
    return model


def marks_of_nodes(text: str) -> list[int]:
    """Numbers of the nodes that a text names."""
    return [int(number) for number in _NODE.findall(text)]


def marks_of_values(text: str) -> list[int]:
    """Numbers of the nodes whose outputs a text names."""
    return [int(number) for number in _VALUE.findall(text)]


def reported(model: ir.Model) -> Iterator[tuple[int, ir.Node]]:
    """The nodes of the main graph that compute on floats at run time, with their numbers."""
    model = _with_types(model)
    constant = {id(value) for value in model.graph.initializers.values()}
    for number, node in enumerate(model.graph):
        inputs = [value for value in node.inputs if value is not None]
        if all(id(value) in constant for value in inputs):
            constant.update(id(value) for value in node.outputs)
        elif node.op_type not in NOT_REPORTED and not _is_guard(node) and _is_float(node.outputs[0]):
            yield number, node


def _is_guard(node: ir.Node) -> bool:
    """Whether the node only keeps a layer from what is behind it (see `graph.apart`)."""
    without_slope = node.op_type == "LeakyRelu" and node.attributes.get_float("alpha", 0.01) == 1
    return without_slope or (node.op_type == "Max" and len(node.inputs) == 1)


def quantized_by_runtime(node: ir.Node, runtime: str) -> str:
    """Returns the error if a layer with a float weight runs on integers; "" for other nodes."""
    weight = constant(node.inputs[1]) if node.op_type in WEIGHTED else None
    if weight is None or weight.dtype.kind != "f":
        return ""
    return f"{runtime} quantizes its float weight by itself, which training has not seen; fold the Q/DQ model again"


def together_with(holder: ir.Node) -> str:
    """Returns why a node runs in float that shares a kernel with one reported before."""
    return f"computed in one kernel with {label(holder)}"


def _with_types(model: ir.Model) -> ir.Model:
    """The model with inferred types, nodes in the same order; with its own types only, where inference fails."""
    typed = io.load(model)
    infer(typed)
    return typed


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def quantizers_by_output(model: ir.Model) -> dict[ir.Value, qdq.Quantizer]:
    """The model's quantizers by the value they give."""
    return qdq.by_output(qdq.quantizers(model))
