"""Asks ONNX Runtime for the block of this processor, since nodes that are written by hand pass by its own checks."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.errors import OnnxqatError
from onnxqat.graph.ops import BLOCKED, Ops
from onnxqat.runtime import optimized, run_exactly
from onnxqat.training.blocked import weights
from onnxqat.training.blocked.convolution import Convolution

log = logging.getLogger(__name__)

_OPSET = 13
_CHANNELS = 32  # holds whole blocks of any size
_FEW = 8  # channels that the optimizer rounds up to one block
_TOLERANCE = 1e-5


@cache
def block() -> int:
    """Channels of a block on this processor: 8 with AVX2, 16 with AVX-512; 0 where it has no blocked kernels that are right."""
    try:
        size = _optimizers_choice()
        works = size > 0 and _CHANNELS % size == 0 and _is_right(size)
    except OnnxqatError as error:
        log.debug("blocked layout: %s", error)
        works = False
    if not works:
        log.info("convolutions run in the plain layout: ONNX Runtime has no blocked kernels for this processor")
    return size if works else 0


def _optimizers_choice() -> int:
    """The block to which the optimizer rounds up the output channels of a convolution with constant weights; 0: it does not."""
    op, x = Ops(_OPSET), _data(_FEW)
    weight = op.Constant(value=ir.tensor(np.ones((_FEW, _FEW, 3, 3), np.float32)))
    graph = optimized(_model(op, x, [op.Conv(x, weight, pads=[1] * 4)])).graph
    blocked = [node.input[1] for node in graph.node if (node.domain, node.op_type) == (BLOCKED, "Conv")]
    return sum(tensor.dims[0] for tensor in graph.initializer if tensor.name in blocked)


def _is_right(size: int) -> bool:
    """Whether data is reordered into blocks of this size, and one blocked convolution gives what the plain one gives."""
    random = np.random.default_rng(0)
    conv = Convolution(_CHANNELS, _CHANNELS, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    op, x = Ops(_OPSET), _data(_CHANNELS)
    weight = op.Constant(value=ir.tensor(random.standard_normal((_CHANNELS, _CHANNELS, 3, 3), dtype=np.float32)))
    rows = op.one("ReorderInput", x, _domain=BLOCKED)
    result = op.one("Conv", rows, weights.forward(op, weight, conv, size), _domain=BLOCKED, pads=conv.pads)
    back = op.one("ReorderOutput", result, _domain=BLOCKED, channels=_CHANNELS)
    model = _model(op, x, [rows, back, op.Conv(x, weight, pads=conv.pads)])
    data = random.standard_normal((2, _CHANNELS, 5, 6), dtype=np.float32)
    order, blocked, plain = run_exactly(model, {"x": data}).values()
    expected = data.reshape(2, _CHANNELS // size, size, 5, 6).transpose(0, 1, 3, 4, 2)
    close = np.allclose(blocked, plain, _TOLERANCE, _TOLERANCE * np.abs(plain).max())
    return np.array_equal(order.ravel(), expected.ravel()) and bool(close)


def _data(channels: int) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", channels, "H", "W"]))


def _model(op: Ops, x: ir.Value, results: list[ir.Value]) -> onnx.ModelProto:
    for number, result in enumerate(results):
        result.name, result.type = f"y{number}", ir.TensorType(ir.DataType.FLOAT)
    for number, node in enumerate(op.nodes):
        node.name = f"{node.op_type}_{number}"
    imports = {"": _OPSET, BLOCKED: 1}
    return ir.to_proto(
        ir.Model(ir.Graph([x], results, nodes=op.nodes, opset_imports=imports, name="probe"), ir_version=8)
    )
