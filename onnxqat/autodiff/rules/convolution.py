"""Gradients of convolution and transposed convolution (Dumoulin & Visin 2016, section 4).

With C_w the linear map x ↦ Conv(x, w), ConvTranspose(·, w) is its transpose. Hence for y = ConvTranspose(x, w) + b:
dx = Conv(dy, w) with the same attributes, and ⟨dy, y⟩ = ⟨Conv(dy, w), x⟩ makes dw the weight gradient of that
convolution, with dy in the place of its input and x in the place of its output's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxqat.autodiff.rule import Call, Custom, Expanded, Refused, Rule, RuleOrChoice
from onnxqat.autodiff.windows import begins_and_ends, padded, spatial, window
from onnxqat.graph.ops import Ops


def conv_rule(node: ir.Node) -> Rule:
    """Automatic padding that shapes did not resolve is padded explicitly."""
    if not (node.attributes.get_ints("kernel_shape") or _kernel(node.inputs[1])):
        return Refused("the shape of its weight is not known; state kernel_shape")
    return Expanded(padded_conv) if "auto_pad" in node.attributes else Custom(conv_gradient)


def conv_gradient(op: Ops, call: Call, dy: ir.Value) -> Sequence[ir.Value]:
    """Conv: see `kernels.convolution`."""
    x, weight = call.required(0), call.required(1)
    w = window(call, _kernel(weight))
    attributes = {"kernel_shape": w.kernel, "strides": w.strides, "dilations": w.dilations, "pads": w.pads}
    return op.kernel("ConvGrad", dy, x, weight, _outputs=3, **attributes, group=call.get("group", 1))


def padded_conv(op: Ops, call: Call) -> ir.Value:
    """Conv with automatic padding = Pad, then Conv without padding."""
    x, weight = call.inputs[0], call.inputs[1]
    assert x is not None
    w = window(call, _kernel(weight))
    kept = {
        name: call.get(name) for name in ("dilations", "group", "kernel_shape", "strides") if name in call.attributes
    }
    return op.Conv(padded(op, x, *begins_and_ends(op, x, w)), *call.inputs[1:], **kept)


def conv_transpose_rule(node: ir.Node) -> Rule:
    """Refuses what the shapes in the model do not determine."""
    x, weight = node.inputs[0], node.inputs[1]
    kernel = list(node.attributes.get_ints("kernel_shape") or _kernel(weight) or [])
    if not kernel:
        return Refused("the shape of its weight is not known; state kernel_shape")
    if _conv_attributes(Call("ConvTranspose", (x, weight), (), node.attributes, 0)) is None:
        return Refused("the shapes in the model do not determine its padding; state pads instead of output_shape")
    return Custom(conv_transpose_gradient)


def conv_transpose_gradient(op: Ops, call: Call, dy: ir.Value) -> list[ir.Value | None]:
    """ConvTranspose: dx = Conv(dy, w); dw as of that Conv; db = Σ dy over all but the channels."""
    x, weight = call.inputs[0], call.inputs[1]
    attributes = _conv_attributes(call)
    assert x is not None
    assert attributes is not None
    rank = len(attributes["kernel_shape"])
    axes = list(range(2, 2 + rank))
    dx = dw = db = None
    if 0 in call.wanted:
        dx = op.Conv(dy, weight, **attributes)
        if call.get("output_padding") or call.get("output_shape"):  # may make room for one more position
            dx = op.Slice(dx, op.ints([0] * rank), spatial(op, x, rank), op.ints(axes))
    if 1 in call.wanted:
        _, dw, _ = op.kernel("ConvGrad", x, dy, weight, _outputs=3, **attributes)
    if 2 in call.wanted:
        db = op.reduce("Sum", dy, [0, *axes], keepdims=False)
    return [dx, dw, db]


def _kernel(weight: ir.Value | None) -> list[int] | None:
    if weight is None or weight.shape is None:
        return None
    sizes = [size for size in weight.shape[2:] if isinstance(size, int)]
    return sizes if len(sizes) == len(weight.shape) - 2 else None


def _conv_attributes(call: Call) -> dict[str, Any] | None:
    """Returns the attributes of the convolution whose transpose the node is, None where they depend on the data.

    ONNX ConvTranspose: pads = stride·(input − 1) + output_padding + reach − output, the larger half at the end for
    SAME_UPPER and at the beginning otherwise; SAME asks for output = input·stride.
    """
    w = window(call, _kernel(call.inputs[1]))
    shape, extra = call.get("output_shape"), call.get("output_padding") or [0] * w.rank
    pads = w.pads
    if shape or w.automatic:
        totals = []
        for axis in range(w.rank):
            size = _size(call.inputs[0], 2 + axis)
            if shape and size is None:
                return None
            stretch = w.strides[axis] * ((size or 1) - 1)
            wanted = shape[-w.rank :][axis] if shape else w.strides[axis] * (size or 1)
            totals.append(stretch + extra[axis] + w.reach[axis] - wanted)
        extra = [e + max(-total, 0) for e, total in zip(extra, totals, strict=True)]
        totals = [max(total, 0) for total in totals]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = small + large if w.automatic == "SAME_UPPER" else large + small
    if any(e >= s for e, s in zip(extra, w.strides, strict=True)):
        return None
    attributes = {"kernel_shape": w.kernel, "strides": w.strides, "dilations": w.dilations, "pads": pads}
    return {**attributes, "group": call.get("group", 1)}


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


RULES: Mapping[str, RuleOrChoice] = {
    "Conv": conv_rule,
    "ConvTranspose": conv_transpose_rule,
}
