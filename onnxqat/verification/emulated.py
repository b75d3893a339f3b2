"""A deployed model in which layers are computed as another kind of processor does, in plain operators.

Every layer is written out as its integer kernel computes it: raw codes, their exact sum, what pairs of products lose of it in
16 bits (`two_taps.py`), and the kernel's own requantization, so that the codes are those of the real kernel, bit for bit:

    code = rint(sum · (input scale · weight scale / output scale)) + zero point           QLinearConv, QGemm, QLinearMatMul
    y    = sum · (input scale · weight scale) + bias                                      float outputs; OpenVINO

The exact sum is taken of unsigned weights (codes + 128), which no kernel saturates. Everything else in the model stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph import io, qdq
from onnxqat.graph.constants import constant
from onnxqat.graph.edit import fresh_value_name
from onnxqat.graph.pairs import PairedLayer, Runtime, paired_layers
from onnxqat.verification import blockers
from onnxqat.verification.two_taps import Writer, is_transposed, loss, placing

Array = NDArray[Any]

_INTEGERS = {"Conv": "ConvInteger", "MatMul": "MatMulInteger", "Gemm": "MatMulInteger"}


@dataclass(frozen=True)
class _OutputQuantizer:
    """The QuantizeLinear that a kernel carries out on its sum."""

    scale: np.float32
    zero_point: int
    bounds: tuple[int, int]


@dataclass(frozen=True)
class Emulated:
    """A model that computes some layers as another kind of processor does.

    Attributes:
        model: the model; beyond its own outputs it has one more for each of those layers.
        statistics: names of these outputs, in the order of the layers: float32 [3], how many of the layer's outputs saturation
            changes, of how many, and the largest change. In codes where the layer writes codes, else in 1/255 of the range
            that its outputs span.
    """

    model: ir.Model
    statistics: tuple[str, ...]


def emulated(deployed: ir.Model, nodes: list[int], runtime: Runtime, *, saturating: bool) -> Emulated:
    """Writes layers out in plain operators.

    Args:
        deployed: the deployed model.
        nodes: numbers of the layers' nodes in its graph.
        runtime: whose kernels.
        saturating: whether pairs of products saturate, as without VNNI; exact otherwise.
    """
    model = io.load(deployed)
    graph = model.graph
    found = {id(layer.node): layer for layer in paired_layers(model)}
    layers = [found[id(node)] for number, node in enumerate(graph) if number in nodes]
    quantizers = qdq.by_output(qdq.quantizers(model))
    names = []
    for layer in layers:
        rewriting = _Rewriting(graph, layer, quantizers, runtime)
        exact, lossy = rewriting.outputs()
        names.append(rewriting.add_statistics(exact, lossy))
        rewriting.replace(lossy if saturating else exact)
    return Emulated(model, tuple(names))


class _Rewriting:
    """One layer on its way into plain operators."""

    def __init__(
        self, graph: ir.Graph, layer: PairedLayer, quantizers: dict[ir.Value, qdq.Quantizer], runtime: Runtime
    ) -> None:
        self._graph, self._layer, self._runtime = graph, layer, runtime
        self._quantizers = quantizers
        self._write = Writer(graph, layer.node)
        self._output = _output_quantizer(layer.node) if runtime == "ort" else None
        self._zero = int(layer.data.zero_points) + layer.offset

    def outputs(self) -> tuple[ir.Value, ir.Value]:
        """The layer's output by exact sums, and by those that lose what saturates: codes in float32, or floats."""
        layer, write = self._layer, self._write
        raw = self._raw_codes()
        lost = loss(write, layer, self._runtime, self._floats(raw), self._zero)
        exact = self._exact_sum(raw)
        lossy = write("Sub", exact, write.cast(lost, ir.DataType.INT32))
        return self._finished(exact), self._finished(lossy)

    def add_statistics(self, exact: ir.Value, lossy: ir.Value) -> str:
        """Makes an output of how far the two are apart; returns its name."""
        write = self._write
        apart = write("Abs", write("Sub", lossy, exact))
        if self._output is None:
            span = write("Sub", *(write(f"Reduce{which}", exact, keepdims=0) for which in ("Max", "Min")))
            apart = write("Mul", write("Div", apart, write("Max", span, np.finfo(np.float32).tiny)), np.float32(255))
        threshold = np.float32(0.5 if self._output is not None else 1e-4)
        changed = write("Cast", write("Greater", apart, threshold), to=ir.DataType.INT64.value)
        found = [
            write.cast(write("ReduceSum", changed, keepdims=0), ir.DataType.FLOAT),
            write.cast(write("Size", apart), ir.DataType.FLOAT),
            write("ReduceMax", apart, keepdims=0),
        ]
        rows = [write("Reshape", value, np.array([1])) for value in found]
        result = write("Concat", *rows, axis=0)
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
        self._graph.outputs.append(result)
        return str(result.name)

    def replace(self, finished: ir.Value) -> None:
        """Puts a finished output in the place of the node's."""
        old = self._layer.node.outputs[0]
        new = self._dequantized(finished)
        name = old.name
        old.name = fresh_value_name(self._graph, f"{name}_replaced")
        new.name, new.type, new.shape = name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self._graph.remove(self._layer.node, safe=True)

    def _raw_codes(self) -> ir.Value:
        """The data as the kernel reads it: uint8; signed codes are shifted by 128."""
        node, scale = self._layer.node, np.asarray(self._layer.data.scales).reshape(())
        data = node.inputs[0]
        if node.attributes.get_int("transA", 0):
            data = self._write("Transpose", data, perm=[1, 0])
        return self._write("QuantizeLinear", data, scale, np.uint8(self._zero))

    def _floats(self, raw: ir.Value) -> ir.Value:
        return self._write.cast(raw, ir.DataType.FLOAT)

    def _exact_sum(self, raw: ir.Value) -> ir.Value:
        """Sum of products, and the integer bias where the kernel adds one; int32."""
        node, write = self._layer.node, self._write
        codes, zero = self._layer.weight.codes, self._layer.weight.zero_points
        if node.op_type != "Conv" and is_transposed(node):
            codes = np.ascontiguousarray(codes.T)
        attributes = {"group": node.attributes.get_int("group", 1), **placing(node)} if node.op_type == "Conv" else {}
        unsigned = (codes + 128).astype(np.uint8)
        zeros = [np.uint8(self._zero), np.uint8(zero.max() + 128)]
        total = write(_INTEGERS[node.op_type], raw, unsigned, *zeros, **attributes)
        bias = self._integer_bias()
        return total if bias is None else write("Add", total, bias)

    def _integer_bias(self) -> Array | None:
        bias = self._bias
        if bias is None or self._runtime != "ort":
            return None
        quantizer = self._quantizers.get(bias)
        if quantizer is not None and quantizer.is_weight:
            codes = quantizer.codes
        else:  # 1.32 rounds a float bias itself
            codes = np.rint(np.asarray(constant(bias)) / self._scales)
        return self._along_channels(codes.astype(np.int32))

    @property
    def _bias(self) -> ir.Value | None:
        node = self._layer.node
        return node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None

    @property
    def _scales(self) -> NDArray[np.float32]:
        """Data scale times weight scale, [] or [C]."""
        product = self._layer.data.scales.reshape(()) * self._layer.weight.scales
        return np.asarray(product * np.float32(self._layer.node.attributes.get_float("alpha", 1.0)), np.float32)

    def _finished(self, total: ir.Value) -> ir.Value:
        """The kernel's output from its sum: codes where it writes codes, floats otherwise."""
        write = self._write
        values = self._floats(total)
        if self._output is None:
            values = write("Mul", values, self._along_channels(self._scales))
            bias = self._bias if self._runtime != "ort" else None
            return values if bias is None else write("Add", values, self._float_bias(bias))
        rounded = write("Round", write("Mul", values, self._along_channels(self._scales / self._output.scale)))
        codes = write("Add", rounded, np.float32(self._output.zero_point))
        return write("Clip", codes, *map(np.float32, self._output.bounds))

    def _dequantized(self, finished: ir.Value) -> ir.Value:
        if self._output is None:
            return finished
        centred = self._write("Sub", finished, np.float32(int(self._output.zero_point)))
        return self._write("Mul", centred, self._output.scale)

    def _along_channels(self, array: Array) -> Array:
        """An array per channel so that it broadcasts along the channels of the output."""
        is_convolution = self._layer.node.op_type == "Conv"
        return array.reshape(-1, *[1] * (len(self._layer.shape) - 2)) if is_convolution and array.ndim else array

    def _float_bias(self, bias: ir.Value) -> ir.Value:
        if self._layer.node.op_type == "Gemm":
            return bias
        shape = np.array([-1, *[1] * (len(self._layer.shape) - 2)])
        return self._write("Reshape", bias, shape)


def _output_quantizer(node: ir.Node) -> _OutputQuantizer | None:
    """The 8-bit quantizer that is the only reader of the node's output; None where the kernel writes floats."""
    value = blockers.way_to_quantizer(node)[-1].outputs[0]
    users = [user for user, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != "QuantizeLinear" or value.is_graph_output():
        return None
    dtype, scale = blockers.type_written(users[0]), constant(users[0].inputs[1])
    if dtype not in blockers.BOUNDS or scale is None or scale.size != 1:
        return None
    zero_point = constant(users[0].inputs[2]) if len(users[0].inputs) > 2 else np.zeros(1)
    if zero_point is None:
        return None
    return _OutputQuantizer(np.float32(scale.item()), int(zero_point.item()), blockers.BOUNDS[dtype])
