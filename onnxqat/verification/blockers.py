"""Finds the reason why a node did not become an integer kernel, in the graph around it, once the runtime refused it.

Each function gives a sentence; where nothing around the node explains it, the sentence says so. What ONNX Runtime demands
was measured with 1.19.2 and 1.32 on x86, what OpenVINO demands with 2026.4.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.movement import MOVEMENT, origin
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Quantizer
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU
from onnxqat.targets.qnn import TARGET as QNN

Quantizers = dict[ir.Value, Quantizer]

_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)
BOUNDS = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}
#: Of several values that are joined, the first speaks for all.
_MOVES = MOVEMENT | {"Concat"}
#: A bias scale this far from input scale times weight scale is refused by 1.32, and computed wrongly by 1.19.2.
_BIAS_TOLERANCE = 0.01


def ort_blockers(node: ir.Node, quantized: Quantizers) -> str:
    """Returns why ONNX Runtime ran the node in float."""
    if node.op_type not in ORT_CPU.placement.reads:
        return f"ONNX Runtime has no integer kernel for {node.op_type}"
    if any(value in quantized and quantized[value].block for value in node.inputs if value is not None):
        return (
            "its weight in blocks is dequantized in each run; ONNX Runtime's kernel for it, MatMulNBits, takes blocks of 16, 32, "
            "64 and 128 of a MatMul, in newer versions than 1.19 of a Gemm too, with no quantizer beside it"
        )
    facts = [*_ort_input_facts(node, quantized)]
    if node.op_type not in ORT_CPU.writes_float:
        facts += _output_facts(node)
    if node.op_type in _BIASED:
        facts += _bias_scale_facts(node, quantized)
    # these matter on some versions and in some surroundings only, so they count where nothing else does
    facts = facts or [*_float_bias_facts(node, quantized), *_signed_facts(node, quantized)]
    return _sentence(facts, "ONNX Runtime")


def openvino_blockers(node: ir.Node, quantized: Quantizers, precision: str) -> str:
    """Returns why OpenVINO ran the node in float."""
    inputs = [value for value in node.inputs[:2] if value is not None]
    facts = [fact for value in inputs for fact in _openvino_input_facts(value, quantized)]
    return _sentence(facts, f"OpenVINO, which computes it in {precision}")


def qnn_blockers(node: ir.Node, quantized: Quantizers, where: str) -> str:
    """Returns why the NPU did not compute the node on integers."""
    if node.op_type not in QNN.operators.kernels | QNN.operators.moves | QNN.operators.absorbs:
        return f"{where}: no integer operator for {node.op_type} is known"
    facts = [
        f"input {value.name!r} comes without a DequantizeLinear"
        for value in node.inputs
        if value is not None and value.dtype == ir.DataType.FLOAT and value not in quantized and constant(value) is None
    ]
    return f"{where}: {'; '.join(facts or _output_facts(node)) or 'the graph around the node does not say why'}"


def _sentence(facts: list[str], runtime: str) -> str:
    return "; ".join(facts) if facts else f"refused by {runtime}; the graph around the node does not say why"


def _ort_input_facts(node: ir.Node, quantized: Quantizers) -> Iterator[str]:
    positions = ORT_CPU.placement.reads[node.op_type]
    for index, value in enumerate(node.inputs):
        if value is None or (positions is not None and index not in positions):
            continue
        source = origin(value, quantized, ORT_CPU.operators.carries)
        quantizer = quantized.get(source)
        if quantizer is None:
            yield _unquantized(source, quantized)
        elif (dtype := _stored(quantizer)) not in _EIGHT_BITS:
            what = "weight" if quantizer.is_weight else "input"
            yield f"{what} {value.name!r} has {_type_name(dtype)} codes, for which {node.op_type} has no integer kernel"


def _unquantized(value: ir.Value, quantized: Quantizers) -> str:
    producer = value.producer()
    if constant(value) is not None:
        return f"input {value.name!r} is a float constant"
    if producer is None:
        return f"input {value.name!r} is a float input of the graph without a quantizer"
    moves = producer.op_type in _MOVES - ORT_CPU.operators.carries
    if moves and any(v in quantized for v in producer.inputs if v is not None):
        return (
            f"input {value.name!r} has no DequantizeLinear: the quantizer stands before {label(producer)}, which ONNX Runtime "
            "does not carry it across; place one behind it too"
        )
    return f"input {value.name!r} comes from {label(producer)} without a DequantizeLinear"


def _output_facts(node: ir.Node) -> Iterator[str]:
    """Yields facts about the nodes between the node and a QuantizeLinear that is its output's only reader."""
    *between, last = way_to_quantizer(node)
    value = last.outputs[0]
    users = [user for user, _ in value.uses()]
    if value.is_graph_output():
        yield f"its output {value.name!r} is a graph output, not quantized"
    elif len(users) != 1:
        yield f"its output {value.name!r} is read by {', '.join(map(label, users))}: only one QuantizeLinear may read it"
    elif users[0].op_type != "QuantizeLinear":
        yield f"its output goes into {label(users[0])} without a QuantizeLinear"
    else:
        dtype = type_written(users[0])
        if dtype not in _EIGHT_BITS:
            yield f"its output is quantized to {_type_name(dtype)} codes, which no integer kernel writes"
        for activation in (*between, last):
            if activation.op_type in ("Relu", "Clip"):
                yield from _kept_activation_facts(activation, users[0])


def way_to_quantizer(node: ir.Node) -> list[ir.Node]:
    """Returns the node and its sole users in turn, as far as ONNX Runtime looks past them for a QuantizeLinear."""
    way = [node]
    while True:
        users = [user for user, _ in way[-1].outputs[0].uses()]
        passed = len(users) == 1 and not way[-1].outputs[0].is_graph_output()
        if not passed or users[0].op_type not in ORT_CPU.operators.carries | {"Relu", "Clip"}:
            return way
        way.append(users[0])


def type_written(quantize: ir.Node) -> ir.DataType:
    """The type of the codes that a QuantizeLinear writes."""
    zero_point = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    return ir.DataType.UINT8 if zero_point is None or zero_point.dtype is None else zero_point.dtype


def _kept_activation_facts(activation: ir.Node, quantize: ir.Node) -> Iterator[str]:
    """A Relu or Clip is absorbed only where the quantizer's own range is within its bounds."""
    low, high = 0.0, np.inf
    if activation.op_type == "Clip":
        low, high = (_bound(activation, 1, -np.inf), _bound(activation, 2, np.inf))
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    dtype = type_written(quantize)
    scale, zero_point = constant(quantize.inputs[1]), 0 if zero is None else constant(zero)
    if dtype not in BOUNDS or scale is None or zero_point is None or scale.size != 1:
        return
    bottom, top = ((bound - float(np.asarray(zero_point).item())) * float(scale.item()) for bound in BOUNDS[dtype])
    if bottom < low or top > high:
        yield (
            f"{label(activation)} to [{low:g}, {high:g}] cannot be absorbed by {label(quantize)}, "
            f"whose {_type_name(dtype)} codes reach from {bottom:.9g} to {top:.9g} "
            f"(scale {float(scale.item()):.9g}, zero point {int(np.asarray(zero_point).item())})"
        )


def _bias_scale_facts(node: ir.Node, quantized: Quantizers) -> Iterator[str]:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scales = [quantized[value].scales for value in node.inputs[:2] if value in quantized]
    if bias not in quantized or len(scales) < 2:
        return
    product, held = scales[0] * scales[1], quantized[bias].scales
    if product.size > 1 and held.size not in (1, product.size):
        return
    off = float(np.abs(held / product - 1).max())
    if off > _BIAS_TOLERANCE:
        yield f"the scale of bias {bias.name!r} is not input scale × weight scale (off by up to {off:.1%})"


def _float_bias_facts(node: ir.Node, quantized: Quantizers) -> Iterator[str]:
    users = [user for user, _ in node.outputs[0].uses()]
    if node.op_type in _BIASED and len(node.inputs) > 2:
        bias = node.inputs[2]
    elif node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
        # the two become one Gemm
        bias = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    else:
        return
    if bias is None:
        return
    if constant(bias) is not None:
        yield f"bias {bias.name!r} is float; store it as int32 of scale input scale × weight scale"
    elif bias in quantized and len(bias.uses()) > 1:
        yield f"bias {bias.name!r} is shared by {', '.join(label(user) for user, _ in bias.uses())}; give each its own"


def _signed_facts(node: ir.Node, quantized: Quantizers) -> Iterator[str]:
    signed = [
        f"input {value.name!r}"
        for value in node.inputs
        if value in quantized and not quantized[value].is_weight and _stored(quantized[value]) == ir.DataType.INT8
    ]
    users = [user for user, _ in way_to_quantizer(node)[-1].outputs[0].uses()]
    if any(user.op_type == "QuantizeLinear" and type_written(user) == ir.DataType.INT8 for user in users):
        signed.append(f"output {node.outputs[0].name!r}")
    if signed:
        yield (
            f"{' and '.join(signed)} {'has' if len(signed) == 1 else 'have'} int8 codes, which ONNX Runtime on x86 takes only in "
            "chains without branches and without Clip; use uint8 with zero point 128"
        )


def _openvino_input_facts(value: ir.Value, quantized: Quantizers) -> Iterator[str]:
    source = origin(value, quantized, _MOVES)
    if source not in quantized:
        producer = source.producer()
        if constant(source) is not None:
            yield f"input {source.name!r} is a float constant"
        elif producer is None:
            yield f"input {source.name!r} is a float input of the graph without a quantizer"
        else:
            yield f"input {source.name!r} comes from {label(producer)} without a quantizer"
        return
    quantizer = quantized[source]
    if quantizer.is_weight and _stored(quantizer) != ir.DataType.INT8:
        yield f"weight {value.name!r} has {_type_name(_stored(quantizer))} codes; OpenVINO's integer kernels take int8 weights"
    elif _stored(quantizer) not in _EIGHT_BITS:
        yield f"input {value.name!r} has {_type_name(_stored(quantizer))} codes, for which there is no integer kernel"


def _stored(quantizer: Quantizer) -> ir.DataType | None:
    """The type of the codes."""
    if quantizer.zero_point is not None and quantizer.zero_point.dtype is not None:
        return quantizer.zero_point.dtype
    return quantizer.dequantize.inputs[0].dtype if quantizer.dequantize.inputs[0] is not None else None


def _bound(clip: ir.Node, index: int, default: float) -> float:
    held = constant(clip.inputs[index]) if len(clip.inputs) > index else None
    return default if held is None else float(held.item())


def _type_name(dtype: ir.DataType | None) -> str:
    return "untyped" if dtype is None else dtype.name.lower()
