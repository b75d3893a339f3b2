"""Writes the quantizers into the graph: the one place of this stage that edits it after preparation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.qdq import Spec
from onnxqat.insert.patterns.movement import moved
from onnxqat.insert.targets import Target


@dataclass(frozen=True, eq=False)
class Placement:
    """One quantizer to write.

    Attributes:
        value: what is quantized.
        spec: how.
        scale: float32, [] or [C].
        zero_point: int32, of the same shape.
        users: the nodes that read the quantized value; None: all, and graph outputs too.
        shares: name stem of scale and zero point; equal for placements that share them.
    """

    value: ir.Value
    spec: Spec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    users: tuple[ir.Node, ...] | None
    shares: str


def place(model: ir.Model, placements: Sequence[Placement], target: Target) -> None:
    """Writes each placement as QuantizeLinear → (Clip) → DequantizeLinear on its value.

    A placement for some users only must come after the one for all users of the same value, which it then reads.
    """
    for placement in placements:
        _Writer(model.graph, placement).write(target)
    model.graph.sort()


class _Writer:
    """Writes the nodes of one placement; scale and zero point are made once and shared."""

    def __init__(self, graph: ir.Graph, placement: Placement) -> None:
        self.graph = graph
        self.spec = placement.spec
        self.placement = placement
        dtype = placement.spec.dtype
        self.scale = self._initializer(f"{placement.shares}_scale", placement.scale)
        self.zero_point = self._initializer(
            f"{placement.shares}_zero_point", placement.zero_point.astype(dtype.numpy())
        )

    def write(self, target: Target) -> None:
        value, users = self.placement.value, self.placement.users
        output = self._pair(value, users)
        if users is None:
            self._repeat_behind_movement(output, target)

    def _repeat_behind_movement(self, value: ir.Value, target: Target) -> None:
        for node in [usage.node for usage in value.uses()]:
            if node.op_type == "QuantizeLinear" or moved(node, target.moves) is not value:
                continue
            for moved_value in node.outputs:
                repeated = self._pair(moved_value, None) if node.op_type in target.repeats else moved_value
                self._repeat_behind_movement(repeated, target)

    def _pair(self, value: ir.Value, users: tuple[ir.Node, ...] | None) -> ir.Value:
        """Quantizes `value` for its users; returns the value that they read now."""
        uses = [u for u in value.uses() if users is None or u.node in users]
        is_output = users is None and value.is_graph_output()
        stem = value.name if users is None else f"{value.name}_{self.spec.bits}bit"
        axis = {"axis": self.spec.axis} if self.spec.axis is not None else {}
        quantize = ir.node("QuantizeLinear", [value, self.scale, self.zero_point], axis, name=f"{stem}_QuantizeLinear")
        nodes = [quantize, *self._clip(quantize.outputs[0], stem)]
        dequantize = ir.node(
            "DequantizeLinear",
            [nodes[-1].outputs[0], self.scale, self.zero_point],
            axis,
            name=f"{stem}_DequantizeLinear",
        )
        nodes.append(dequantize)
        for node, suffix in zip(nodes, ("quantized", "clipped") if len(nodes) == 3 else ("quantized",), strict=False):
            node.outputs[0].name = f"{stem}_{suffix}"
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(self.spec.dtype), value.shape
        output = dequantize.outputs[0]
        output.name = f"{stem}_dequantized"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        for use in uses:
            use.node.replace_input_with(use.idx, output)
        if is_output:
            _take_over_output(self.graph, value, output)
        self.graph.extend(nodes)
        return output

    def _clip(self, codes: ir.Value, stem: str) -> list[ir.Node]:
        """Codes narrower than their type, or without the lowest one, are clipped as integers."""
        qmin, qmax = self.spec.bounds
        carrier = Spec(8, signed=self.spec.signed).bounds
        if (qmin, qmax) == carrier:
            return []
        dtype = self.spec.dtype
        kind = "int8" if self.spec.signed else "uint8"
        bounds = [
            self._initializer(f"{kind}_{'minus_' if bound < 0 else ''}{abs(bound)}", np.asarray(bound, dtype.numpy()))
            for bound in (qmin, qmax)
        ]
        return [ir.node("Clip", [codes, *bounds], name=f"{stem}_Clip")]

    def _initializer(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value


def _take_over_output(graph: ir.Graph, value: ir.Value, output: ir.Value) -> None:
    """Lets the graph output keep its name when a quantizer is put behind it."""
    name = value.name
    for index, existing in enumerate(graph.outputs):
        if existing is value:
            graph.outputs[index] = output
    value.name = f"{name}_unquantized"
    output.name = name
