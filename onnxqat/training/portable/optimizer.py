"""An optimizer's step as one graph over the flat arrays, which computes its rates from the learning rate and the step itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.ops import Ops
from onnxqat.training.optimize.optimizers import SGD, AdamW, Optimizer, updated, updated_scales
from onnxqat.training.optimize.update import scale_bounds, sizes
from onnxqat.training.portable.flat import GRADIENTS, PARAMETERS, vector
from onnxqat.training.portable.hold import held
from onnxqat.training.running.values import Floats
from onnxqat.training.training_graph.parameters import Layout

_OPSET = 17


def optimizer_graph(optimizer: Optimizer, qdq: ir.Model, layout: Layout, initial: Floats) -> ir.Model:
    """(parameters, gradients, moments, `learning_rate`, `step` from 1) → new parameters and moments.

    Scales of the model that its weights and biases have outgrown are raised, as `Trainer` does after each step.

    Raises:
        InputError: the optimizer is not one of this package.
    """
    op = Ops(_OPSET)
    names = [PARAMETERS, GRADIENTS, *(f"moment_{i}" for i in range(optimizer.moments))]
    vectors = [vector(name, layout.size) for name in names]
    lr, step = (
        ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([])) for n in ("learning_rate", "step")
    )
    low, high = scale_bounds(layout, initial)
    units = sizes(layout, initial) if optimizer.relative else None
    stretches = []
    for kind, (start, stop) in layout.bounds.items():
        if start == stop:
            continue
        p, g, *moments = (op.Slice(value, op.ints([start]), op.ints([stop])) for value in vectors)
        rate = _rates(op, optimizer, lr, step, decays=kind == "weight")
        if kind == "scale":
            new = updated_scales(op, optimizer, p, g, moments, rate, _constant(op, low), _constant(op, high))
        else:
            new = updated(
                op, optimizer, p, g, moments, rate, None if units is None else _constant(op, units[start:stop])
            )
        stretches.append(new)
    moved, *outputs = [op.Concat(*parts, axis=0) for parts in zip(*stretches, strict=True)]
    outputs = [held(op, qdq, layout, moved), *outputs]
    for name, value in zip(
        ["new_parameters", *(f"new_moment_{i}" for i in range(optimizer.moments))], outputs, strict=True
    ):
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([layout.size])
    graph = ir.Graph([*vectors, lr, step], outputs, nodes=op.nodes, opset_imports={"": _OPSET}, name="optimizer")
    return ir.Model(graph, ir_version=8)


def _rates(op: Ops, optimizer: Optimizer, lr: ir.Value, step: ir.Value, *, decays: bool) -> dict[str, ir.Value]:
    """The scalars of `Optimizer.rates`; powers are taken in double precision, as differences from 1 are small."""
    decay = getattr(optimizer, "weight_decay", 0.0) if decays else 0.0
    if isinstance(optimizer, SGD):
        return {"lr": lr, "decay": _constant(op, np.float32(decay))}
    if not isinstance(optimizer, AdamW):
        raise InputError(f"optimizer {type(optimizer).__name__}: cannot be exported; use SGD or AdamW")
    count = op.Cast(step, to=ir.DataType.DOUBLE)
    first, second = (op.Sub(1.0, op.Pow(_constant(op, np.float64(beta)), count)) for beta in optimizer.betas)
    return {
        "lr": op.Cast(op.Div(op.Cast(lr, to=ir.DataType.DOUBLE), first), to=ir.DataType.FLOAT),
        "root": op.Cast(op.Reciprocal(op.Sqrt(second)), to=ir.DataType.FLOAT),
        "keep": op.Sub(1.0, op.Mul(lr, decay)),
    }


def _constant(op: Ops, array: np.ndarray | np.generic) -> ir.Value:
    return op.Constant(value=ir.tensor(np.asarray(array)))
