"""The fusion report of ONNX Runtime, read from the graph it optimized.

How names survive there (1.19.2 and 1.32): a fused node keeps the name of the node it replaces, unless the layout becomes
channels-last: 1.32 then appends `_token_<n>`, and 1.19.2 names the node after its operator but its output after the old
node's name. Where a node was merged with those after it, the output is the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir

from onnxqat.graph.naming import name_of
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU
from onnxqat.verification import fusion
from onnxqat.verification.blockers import ort_blockers
from onnxqat.verification.fusion import Kernel, Kind

_INTEGER_PREFIXES = ("QLinear", "QGemm", "MatMulIntegerToFloat", "QAttention")
_EIGHT_BITS = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
#: Put in by the layout transformation: the kernel is the node before.
_LAYOUT = {"Transpose", "Reshape", "ReorderInput", "ReorderOutput"}
#: Nodes behind a kernel that have no name of the model's: those, and dequantization that was moved past a MaxPool or a Reshape.
_BEHIND = _LAYOUT | {"DequantizeLinear"}
#: Operators under whose kernel a node can be found, beside its own.
_MERGES = {"MatMul": ("Gemm",), "Add": ("Gemm", "MatMul", "Conv"), "BatchNormalization": ("Conv",)}
#: Operators that a kernel can take in after the node it is named for.
_FOLLOWERS = frozenset(
    ["QuantizeLinear", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add"]
)


def report(deployed: ir.Model, answer: dict[str, Any]) -> list[Kernel]:
    """Returns the fate of each node.

    Args:
        deployed: the deployed model.
        answer: "model": path of the optimized graph of its marked copy.
    """
    # ONNX Runtime leaves pointers of its own in place of some initializers' data: do not follow them
    executed = _Executed(onnx.load(answer["model"], load_external_data=False).graph)
    nodes = list(deployed.graph)
    numbers = dict(fusion.reported(deployed))
    found = {number: executed.find(nodes, number) for number in numbers}
    executed.add_nameless(found, {number: node.op_type for number, node in numbers.items()})
    quantized = fusion.quantizers_by_output(deployed)
    kernels: dict[int, Kernel] = {}
    holders: dict[int, ir.Node] = {}
    for number in numbers:
        node, kernel = nodes[number], found[number]
        parts = executed.parts(node, nodes, kernel)
        kernel = parts[-1] if parts else None
        kind: Kind = "absorbed" if kernel is None else executed.kind(kernel)
        holder = holders.setdefault(id(kernel), node)
        reason = ""
        if kind in ("float", "weight-only"):
            reason = ort_blockers(node, quantized) if holder is node else fusion.together_with(holder)
            if kind == "weight-only" and any(
                v in quantized and quantized[v].block for v in node.inputs if v is not None
            ):
                reason = _rounding(kernel)
        elif kind == "integer":
            reason = fusion.quantized_by_runtime(node, ORT_CPU.title)
        names = name_of(node), node.op_type, " + ".join(map(_kernel_name, parts))
        executed_as = "" if kernel is None or holder is not node else kernel.name
        kernels[number] = Kernel(*names, kind, reason, fusion.purpose(node), executed_as)
    return list(kernels.values())


def _rounding(kernel: onnx.NodeProto | None) -> str:
    """Returns what MatMulNBits does to its float input at the accuracy level of the session."""
    levels = [] if kernel is None else [one.i for one in kernel.attribute if one.name == "accuracy_level"]
    if levels != [4]:
        return ""
    return (
        "rounds its input to int8, a scale for each block (accuracy_level 4, ONNX Runtime's default), which training has not "
        "seen; session option session.qdq_matmulnbits_accuracy_level=1 keeps it in float"
    )


class _Executed:
    """The optimized graph, with its nodes by the marks in their names and in those of their outputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = {name: node for node in graph.node for name in node.output}
        self._integers = _integer_values(graph)
        self._by_node: dict[int, onnx.NodeProto] = {}
        self._by_value: dict[int, onnx.NodeProto] = {}
        self._nameless = [n for n in graph.node if n.op_type not in _LAYOUT and not _has_marks(n)]
        self._outputs: dict[int, set[str]] = {}
        for node in graph.node:
            for number in [m for text in (node.name, *node.output) for m in _marks(text)]:
                self._outputs.setdefault(number, set()).update(node.output)
            own = fusion.marks_of_nodes(node.name)
            for number in own or [m for name in node.output for m in fusion.marks_of_nodes(name)]:
                if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                    self._by_node[number] = node
            # blocked-layout kernels (nchwc) keep the value's name in their own
            for number in (m for name in (node.name, *node.output) for m in fusion.marks_of_values(name)):
                self._by_value[number] = self._behind_layout(node)

    def find(self, nodes: list[ir.Node], number: int) -> onnx.NodeProto | None:
        """The optimized node that computes the deployed node of that number."""
        if number in self._by_node:
            return self._by_node[number]
        if number in self._by_value:
            return self._by_value[number]
        numbers = {node: index for index, node in enumerate(nodes)}
        for node in _followers(nodes[number]):
            candidate = self._by_value.get(numbers[node])
            if candidate is not None and _computes(candidate, nodes[number].op_type):
                return candidate
        return None

    def parts(self, node: ir.Node, nodes: list[ir.Node], kernel: onnx.NodeProto | None) -> list[onnx.NodeProto]:
        """The kernel of a node, with those before it that have no name: HardSwish and other functions become several nodes."""
        known = [] if kernel is None else [kernel]
        source = node.inputs[0]
        if source is None or not _is_function(node) or (known and node.op_type in known[0].op_type):
            return known
        before = source.producer()
        reached = {str(source.name)} if before is None else self._outputs.get(nodes.index(before), set())
        found = []
        for one in self._nameless:
            if not reached.isdisjoint(one.input):
                found.append(one)
                reached = reached | set(one.output)
        return known if known and reached.isdisjoint(known[0].input) else [*found, *known]

    def add_nameless(self, found: dict[int, onnx.NodeProto | None], op_types: dict[int, str]) -> None:
        """Gives kernels that lost every name (1.19.2: channels-last MaxPool) to the nodes left over, in order.

        Only where there are as many of the one as of the other; which is which cannot be told, nor does it matter.
        """
        taken = {id(kernel) for kernel in found.values()}
        for op_type in set(op_types.values()):
            left = [number for number, kernel in found.items() if kernel is None and op_types[number] == op_type]
            spare = [n for n in self._nameless if id(n) not in taken and op_type in n.op_type]
            if len(left) == len(spare):
                found.update(zip(left, spare, strict=True))

    def kind(self, node: onnx.NodeProto) -> Kind:
        """Whether a kernel computes on integers."""
        if node.op_type.startswith(_INTEGER_PREFIXES) or node.input[0] in self._integers:
            return "integer"
        return "weight-only" if node.op_type == "MatMulNBits" else "float"

    def _behind_layout(self, node: onnx.NodeProto) -> onnx.NodeProto:
        while node.op_type in _BEHIND and not fusion.marks_of_nodes(node.name) and node.input[0] in self._producers:
            node = self._producers[node.input[0]]
        return node


def _followers(node: ir.Node) -> Iterator[ir.Node]:
    """One after another, the sole users of a node's output that its kernel may have taken in."""
    while True:
        users = [user for user, _ in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type not in _FOLLOWERS:
            return
        node = users[0]
        yield node


def _is_function(node: ir.Node) -> bool:
    return node.domain == "" and onnx.defs.has(node.op_type) and bool(onnx.defs.get_schema(node.op_type).has_function)  # type: ignore[attr-defined]


def _has_marks(node: onnx.NodeProto) -> bool:
    return any(_marks(text) for text in (node.name, *node.output))


def _marks(text: str) -> list[int]:
    """Numbers of the nodes that a text names, by themselves or by their outputs."""
    return [*fusion.marks_of_nodes(text), *fusion.marks_of_values(text)]


def _computes(candidate: onnx.NodeProto, op_type: str) -> bool:
    return any(name in candidate.op_type for name in (op_type, *_MERGES.get(op_type, ())))


def _integer_values(graph: onnx.GraphProto) -> set[str]:
    """Names of the values of 8-bit integers; the runtime does not renew the types that the file lists."""
    found = {tensor.name for tensor in graph.initializer if tensor.data_type in _EIGHT_BITS}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" or node.op_type == "MatMulIntegerToFloat":
            continue
        is_integer = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        if node.op_type == "QGemm":
            is_integer = len(node.input) > 7 and bool(node.input[7])
        elif node.op_type == "Cast":
            is_integer = node.attribute[0].i in _EIGHT_BITS
        elif node.input and node.domain in ("", "com.microsoft"):
            is_integer = is_integer or node.input[0] in found
        if is_integer:
            found.update(node.output)
    return found


def _kernel_name(node: onnx.NodeProto) -> str:
    short = node.domain.rsplit(".", 1)[-1]
    return f"{short}.{node.op_type}" if node.domain not in ("", "ai.onnx", "com.microsoft") else node.op_type
