"""Sizes that are free in training and fixed in the deployed model, as runtimes for NPUs demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import onnx_ir as ir
from onnxscript import optimizer

from onnxqat.graph.types import infer

#: Key of a model's metadata: the sizes that `fold` fixes, by name, as a JSON object.
FIXED_SIZES = "onnxqat.fixed_sizes"


def free_sizes(graph: ir.Graph) -> Iterator[tuple[str, ir.Value, int]]:
    """Yields name, input and axis of each size that is free; one without a name goes by `INPUT[AXIS]`."""
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and not value.is_initializer():
                yield size.value or f"{value.name}[{axis}]", value, axis


def fixed_sizes(model: ir.Model) -> Mapping[str, int]:
    """The sizes that the deployed model is to have."""
    return dict(json.loads(model.metadata_props.get(FIXED_SIZES, "{}")))


def any_samples(model: ir.Model) -> ir.Model:
    """The model, or where it has fixed sizes a copy whose inputs take any number of samples, for checking batches by."""
    if not fixed_sizes(model):
        return model
    model = model.clone()
    for value in model.graph.inputs:
        if value.shape is not None and value.shape.rank():
            value.shape = ir.Shape([None, *value.shape[1:]])
    return model


def fix_sizes(model: ir.Model) -> None:
    """Fixes these sizes in place; shapes that are computed from them become constants."""
    sizes = fixed_sizes(model)
    if not sizes:
        return
    for name, value, axis in list(free_sizes(model.graph)):
        if name in sizes:
            assert value.shape is not None
            value.shape = ir.Shape([*value.shape[:axis], sizes[name], *value.shape[axis + 1 :]])
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    infer(model)
    optimizer.fold_constants(model, should_fold=_computes_shapes)
    infer(model)


def _computes_shapes(node: ir.Node) -> bool | None:
    return False if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
