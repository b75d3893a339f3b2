"""Biases as int32 codes on their grid sx · sw (see `graph.biases`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError
from onnxqat.graph.biases import Bias
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name
from onnxqat.graph.naming import label

LARGEST = 2**31 - 1


def fold_bias(graph: ir.Graph, bias: Bias) -> None:
    """Gives a layer its bias as int32 codes behind a DequantizeLinear, its own even where the float bias was shared.

    Raises:
        InputError: a code does not fit into int32, so the scales are too small for the bias.
    """
    codes = bias.codes
    _check_fits(bias, codes)
    name = str(bias.layer.name)
    bias.adder.replace_input_with(bias.index, _dequantized(graph, name, codes.astype(np.int32), bias.step))


def _check_fits(bias: Bias, codes: NDArray[np.float64]) -> None:
    """Refuses codes beyond int32; NaN is no smaller than the bound either."""
    fits = np.abs(codes) <= LARGEST
    if fits.all():
        return
    worst = tuple(int(i) for i in np.argwhere(~fits)[0])
    value, step = (float(np.broadcast_to(a, codes.shape)[worst]) for a in (bias.array, bias.step))
    raise InputError(
        f"{label(bias.layer)}: bias {value:.3g} of channel {worst[-1] if worst else 0} does not fit "
        f"int32 at scale {step:.3g}; train again, or give this node wider ranges"
    )


def _dequantized(graph: ir.Graph, stem: str, codes: NDArray[np.int32], scale: NDArray[np.float32]) -> ir.Value:
    axis = {} if scale.ndim == 0 else {"axis": codes.ndim - 1}
    parts = {"quantized": codes, "scale": scale}  # int32 codes have no zero point
    name = fresh_name(graph, f"{stem}_bias_dq")
    node = ir.node(
        "DequantizeLinear", [constant_value(graph, f"{stem}_bias_{k}", v) for k, v in parts.items()], axis, name=name
    )
    node.outputs[0].name = fresh_value_name(graph, name)
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
    graph.append(node)
    return node.outputs[0]
