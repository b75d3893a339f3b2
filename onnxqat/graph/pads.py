"""Automatic padding written out as explicit `pads`."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

_POOLING = {"AveragePool", "MaxPool", "LpPool"}


def make_pads_explicit(model: ir.Model) -> None:
    """Replaces `auto_pad` by `pads` in Conv, ConvTranspose and pooling nodes where shapes say how much.

    VALID becomes no padding. SAME needs the input's spatial sizes unless the stride is 1; where they are not known,
    the node keeps its `auto_pad`.
    """
    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type not in _POOLING | {"Conv"}:
            continue
        mode = node.attributes.get_string("auto_pad", "NOTSET")
        if mode == "NOTSET":
            node.attributes.pop("auto_pad", None)
            continue
        pads = _pads(node, mode)
        if pads is not None:
            del node.attributes["auto_pad"]
            node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _pads(node: ir.Node, mode: str | None) -> list[int] | None:
    """Returns the begins of all spatial axes, then the ends (ONNX Conv specification), None if unknown."""
    kernel = _kernel_shape(node)
    if kernel is None:
        return None
    rank = len(kernel)
    if mode == "VALID":
        return [0] * (2 * rank)
    strides = node.attributes.get_ints("strides", [1] * rank) or [1] * rank
    dilations = node.attributes.get_ints("dilations", [1] * rank) or [1] * rank
    sizes = _spatial_sizes(node, rank)
    totals = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = dilation * (width - 1) + 1
        if stride == 1:
            totals.append(reach - 1)
        elif isinstance(size, int):
            totals.append(max((-(-size // stride) - 1) * stride + reach - size, 0))
        else:
            return None
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if mode == "SAME_UPPER" else large + small


def _kernel_shape(node: ir.Node) -> Sequence[int] | None:
    stated = node.attributes.get_ints("kernel_shape")
    if stated:
        return stated
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or not all(isinstance(size, int) for size in weight.shape):
        return None
    return [int(size) for size in weight.shape[2:]]  # type: ignore[arg-type]


def _spatial_sizes(node: ir.Node, rank: int) -> list[int | None]:
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) != rank + 2:
        return [None] * rank
    return [size if isinstance(size, int) else None for size in x.shape[2:]]
