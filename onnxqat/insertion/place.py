"""Writes the quantizers into the graph: the one place of this stage that edits it after preparation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, shared_code
from onnxqat.graph.movement import moved
from onnxqat.graph.qdq import CODE_BOUNDS, FIXED_GRID, Spec
from onnxqat.insertion.groups import is_float
from onnxqat.targets import Target

_SHORT = {"QuantizeLinear": "q", "Clip": "qc", "DequantizeLinear": "dq"}


@dataclass(frozen=True, eq=False)
class Grid:
    """Scale, zero point and spec as they stand in the graph; quantizers that share a grid share these initializers.

    `stem` is what the names of its nodes begin with; `fixed` says whether training leaves scale and zero point as they are.
    """

    stem: str
    spec: Spec
    scale: ir.Value
    zero_point: ir.Value
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Placement:
    """One quantizer to write.

    Attributes:
        value: the value that is quantized.
        grid: scale, zero point and spec.
        users: the nodes that read the quantized value; None: all, and graph outputs too.
    """

    value: ir.Value
    grid: Grid
    users: tuple[ir.Node, ...] | None = None


def new_grid(graph: ir.Graph, stem: str, spec: Spec, scale: NDArray[np.float32], zero_point: NDArray[np.int32]) -> Grid:
    """Adds scale (float32, [] or [C] or of the weight's rank) and zero point (int32, same shape) to the graph as initializers."""
    return Grid(
        stem,
        spec,
        constant_value(graph, f"{stem}_scale", scale),
        constant_value(graph, f"{stem}_zero_point", zero_point.astype(spec.dtype.numpy())),
    )


def place(graph: ir.Graph, placements: Sequence[Placement], target: Target) -> None:
    """Writes each placement as QuantizeLinear → (Clip) → DequantizeLinear on its value.

    A placement for some users comes after the one for all users of the same value: those users then read it through both,
    since a second quantizer on the float value would keep its producer from running on integers.
    """
    read_as: dict[ir.Value, ir.Value] = {}
    for placement in placements:
        value = read_as.get(placement.value, placement.value)
        output = _write(graph, value, placement.grid, placement.users)
        if placement.users is None:
            read_as[value] = output
            if placement.grid.spec.axis is None:
                _repeat_behind_movement(graph, output, placement.grid, target, read_as)
    graph.sort()


def _repeat_behind_movement(
    graph: ir.Graph, value: ir.Value, grid: Grid, target: Target, read_as: dict[ir.Value, ir.Value]
) -> None:
    """Puts a second pair of the same grid behind the data movement that needs one to run on integers."""
    for node in list(dict.fromkeys(usage.node for usage in value.uses())):
        if moved(node, target.operators.moves) is not value or node.graph is not graph:
            continue
        for result in [output for output in node.outputs if output.name and is_float(output)]:
            if node.op_type in target.operators.repeats and (result.uses() or result.is_graph_output()):
                read_as[result] = _write(graph, result, grid, None)
            _repeat_behind_movement(graph, read_as.get(result, result), grid, target, read_as)


def _write(graph: ir.Graph, value: ir.Value, grid: Grid, users: tuple[ir.Node, ...] | None) -> ir.Value:
    """Quantizes `value` for its users; returns the value that they read now."""
    uses = [use for use in value.uses() if users is None or use.node in users]
    axis = {} if grid.spec.axis is None else {"axis": grid.spec.axis}
    if grid.spec.block:
        axis["block_size"] = grid.spec.block
    quantize = ir.node("QuantizeLinear", [value, grid.scale, grid.zero_point], axis)
    nodes = [quantize, *_clip(graph, quantize.outputs[0], grid.spec)]
    nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], grid.scale, grid.zero_point], axis))
    for node in nodes:
        # short names: in a small net they would be a tenth of the deployed file
        node.name = fresh_name(graph, f"{grid.stem}_{_SHORT[node.op_type]}")
        if grid.fixed:
            node.metadata_props[FIXED_GRID] = "true"
        node.outputs[0].name = fresh_value_name(graph, str(node.name))
        dtype = ir.DataType.FLOAT if node is nodes[-1] else grid.spec.dtype
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
    graph.extend(nodes)
    output = nodes[-1].outputs[0]
    for use in uses:
        use.node.replace_input_with(use.idx, output)
    # an output that is an input as well is what came in, not what the codes make of it
    if users is None and value.is_graph_output() and value.producer() is not None:
        _take_over_output(graph, value, output)
    return output


def _clip(graph: ir.Graph, codes: ir.Value, spec: Spec) -> list[ir.Node]:
    """Codes narrower than their type, or without the lowest one, are clipped as integers."""
    if spec.bounds == CODE_BOUNDS[spec.dtype]:
        return []
    bounds = [shared_code(graph, np.asarray(bound, spec.dtype.numpy())) for bound in spec.bounds]
    return [ir.node("Clip", [codes, *bounds])]


def _take_over_output(graph: ir.Graph, value: ir.Value, output: ir.Value) -> None:
    """Lets the graph output keep its name when a quantizer is put behind it."""
    name = value.name
    for index, existing in enumerate(graph.outputs):
        if existing is value:
            graph.outputs[index] = output
    value.name = fresh_value_name(graph, f"{name}_unquantized")
    output.name = name
