"""Optimizers: frozen specifications, each of which writes its update as an ONNX graph over a stretch of the flat arrays.

Weights and other parameters are updated as they are. A scale s is updated as θ = log s: with dL/dθ = s · dL/ds the new scale
is s · exp(-update), which is positive whatever happens, and which makes one learning rate serve weights and scales. One step
changes no scale by more than a tenth (`LARGEST_LOG_STEP`), and none beyond its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import onnx
import onnx_ir as ir

from onnxqat.errors import InputError
from onnxqat.graph.ops import Ops
from onnxqat.training.training_graph.parameters import Kind

LARGEST_LOG_STEP = 0.1
_OPSET = 17

Rates = dict[str, float]


@runtime_checkable
class Optimizer(Protocol):
    """Interface of an optimizer, as the trainer uses it.

    Attributes:
        lr: learning rate before the schedule's factor.
        moments: how many flat arrays of its own it keeps.
        relative: whether steps are measured by the size of each parameter.
    """

    @property
    def relative(self) -> bool:
        """See above."""

    @property
    def lr(self) -> float:
        """See above."""

    @property
    def moments(self) -> int:
        """See above."""

    def rates(self, lr: float, step: int, *, decays: bool) -> Rates:
        """Scalars of one update: the learning rate of this step, `step` counted from 1, weight decay where `decays`."""

    def direction(
        self, op: Ops, p: ir.Value, g: ir.Value, moments: list[ir.Value], rate: dict[str, ir.Value]
    ) -> Update:
        """Writes what is subtracted from the parameter (or from its logarithm), and the new moments."""


@dataclass(frozen=True)
class Update:
    """Result of an optimizer's step, as values of the graph.

    Attributes:
        kept: factor on the parameter before the step is subtracted; None: 1.
        step: what is subtracted.
        moments: the new moments.
    """

    kept: ir.Value | None
    step: ir.Value
    moments: list[ir.Value]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD: v ← μ·v + g + λ·p, p ← p - lr·v.

    Attributes:
        lr: learning rate, above 0; scales are updated by their logarithms.
        momentum: μ, in [0, 1).
        weight_decay: λ, 0 or more; only for weights.
        relative: False: steps of weights and biases are not measured by their size.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.SGD(lr=1e-3, momentum=0.9))
        ```
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    relative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("SGD", "lr", self.lr, lambda x: x > 0, "above 0")
        _check("SGD", "momentum", self.momentum, lambda x: 0 <= x < 1, "in [0, 1)")
        _check("SGD", "weight_decay", self.weight_decay, lambda x: x >= 0, "0 or more")

    @property
    def moments(self) -> int:
        """One: the velocity."""
        return 1

    def rates(self, lr: float, step: int, *, decays: bool) -> Rates:
        """See `Optimizer`."""
        return {"lr": lr, "decay": self.weight_decay if decays else 0.0}

    def direction(
        self, op: Ops, p: ir.Value, g: ir.Value, moments: list[ir.Value], rate: dict[str, ir.Value]
    ) -> Update:
        """See `Optimizer`."""
        pull = op.Add(g, op.Mul(p, rate["decay"]))
        velocity = op.Add(op.Mul(moments[0], _float(op, self.momentum)), pull)
        return Update(None, op.Mul(velocity, rate["lr"]), [velocity])


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as torch.optim.AdamW.

    With `relative`, the step of each weight and bias is multiplied by its tensor's root mean square when training began (as
    Adafactor does, Shazeer and Stern 2018, section 8). Where normalizations were folded into convolutions, weights of one
    model can differ a thousandfold in size, and so do the steps of their quantizers: no one absolute rate moves the codes of
    all of them. Scales are updated relatively in any case. Parameters of layers without quantizers have no codes to move: they
    take a hundredth of such a step.

    Attributes:
        lr: learning rate, above 0; for scales, and with `relative` for all parameters, the relative step.
        betas: decay rates of the means of the gradient and of its square, each in [0, 1).
        eps: number above 0 that is added to the denominator.
        weight_decay: decay per step, times the learning rate; 0 or more, only for weights.
        relative: whether steps are measured by the size of each parameter.
        squares: moments that are never negative, where they are kept in 8 bits.

    Example:
        ```python
        trainer = onnxqat.Trainer(qdq, optimizer=onnxqat.AdamW(lr=1e-3, relative=True))
        ```
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    relative: bool = False
    squares: ClassVar[tuple[int, ...]] = (1,)

    def __post_init__(self) -> None:
        _check("AdamW", "lr", self.lr, lambda x: x > 0, "above 0")
        for beta in self.betas:
            _check("AdamW", "betas", beta, lambda x: 0 <= x < 1, "in [0, 1)")
        _check("AdamW", "eps", self.eps, lambda x: x > 0, "above 0")
        _check("AdamW", "weight_decay", self.weight_decay, lambda x: x >= 0, "0 or more")

    @property
    def moments(self) -> int:
        """Two: mean and uncentred variance of the gradient."""
        return 2

    def rates(self, lr: float, step: int, *, decays: bool) -> Rates:
        """See `Optimizer`."""
        return {
            "lr": lr / (1 - self.betas[0] ** step),
            "root": 1 / math.sqrt(1 - self.betas[1] ** step),
            "keep": 1 - lr * self.weight_decay if decays else 1.0,
        }

    def direction(
        self, op: Ops, p: ir.Value, g: ir.Value, moments: list[ir.Value], rate: dict[str, ir.Value]
    ) -> Update:
        """See `Optimizer`."""
        first, second = self.betas
        mean = op.Add(op.Mul(moments[0], _float(op, first)), op.Mul(g, _float(op, 1 - first)))
        square = op.Mul(op.Mul(g, g), _float(op, 1 - second))
        variance = op.Add(op.Mul(moments[1], _float(op, second)), square)
        width = op.Add(op.Mul(op.Sqrt(variance), rate["root"]), _float(op, self.eps))
        return Update(rate["keep"], op.Mul(op.Div(mean, width), rate["lr"]), [mean, variance])


def updated(
    op: Ops,
    optimizer: Optimizer,
    p: ir.Value,
    g: ir.Value,
    moments: list[ir.Value],
    rate: dict[str, ir.Value],
    unit: ir.Value | None,
) -> list[ir.Value]:
    """Writes an update of weights or biases; returns the new ones and the new moments. `unit` is a factor on steps."""
    update = optimizer.direction(op, p, g, moments, rate)
    step = update.step if unit is None else op.Mul(update.step, unit)
    return [op.Sub(p if update.kept is None else op.Mul(p, update.kept), step), *update.moments]


def updated_scales(
    op: Ops,
    optimizer: Optimizer,
    p: ir.Value,
    g: ir.Value,
    moments: list[ir.Value],
    rate: dict[str, ir.Value],
    low: ir.Value,
    high: ir.Value,
) -> list[ir.Value]:
    """Writes an update of scales by their logarithms, within bounds; returns the new ones and the new moments."""
    update = optimizer.direction(op, p, op.Mul(g, p), moments, rate)
    step = op.Clip(update.step, _float(op, -LARGEST_LOG_STEP), _float(op, LARGEST_LOG_STEP))
    return [op.Min(op.Max(op.Mul(p, op.Exp(op.Neg(step))), low), high), *update.moments]


def update_graph(optimizer: Optimizer, kind: Kind) -> onnx.ModelProto:
    """The update of a stretch of the flat arrays.

    Inputs: `p`, `g`, `m0`…, all float32 [N]; the scalars of `Optimizer.rates`; `gradient_factor`, a scalar on the gradient;
    `low` and `high` [N], bounds, for scales and zero points; `unit` [N], factors on steps, for zero points, and for weights and
    others where the optimizer is relative.
    Outputs: `p_new`, `m0_new`…, each of which may be written over its input.

    Args:
        optimizer: what to do.
        kind: what the parameters are; scales are updated as logarithms.
    """
    op = Ops(_OPSET)
    p, g = _vector("p"), _vector("g")
    moments = [_vector(f"m{i}") for i in range(optimizer.moments)]
    rate = {name: _scalar(name) for name in optimizer.rates(1.0, 1, decays=False)}
    factor = _scalar("gradient_factor")
    inputs = [p, g, *moments, *rate.values(), factor]
    scaled = op.Mul(g, factor)
    low, high, unit = _vector("low"), _vector("high"), _vector("unit")
    if kind == "scale":
        inputs += [low, high]
        outputs = updated_scales(op, optimizer, p, scaled, moments, rate, low, high)
    elif kind == "zero_point":
        inputs += [low, high, unit]
        moved, *kept = updated(op, optimizer, p, scaled, moments, rate, unit)
        outputs = [op.Min(op.Max(moved, low), high), *kept]
    else:
        inputs += [unit] if optimizer.relative else []
        outputs = updated(op, optimizer, p, scaled, moments, rate, unit if optimizer.relative else None)
    for name, value in zip(["p_new", *(f"m{i}_new" for i in range(len(moments)))], outputs, strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N"])
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports={"": _OPSET}, name="update")
    return ir.to_proto(ir.Model(graph, ir_version=8))


def _vector(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N"]))


def _scalar(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))


def _float(op: Ops, number: float) -> ir.Value:
    return op.Constant(value=ir.tensor(np.float32(number)))


def _check(what: str, name: str, number: float, holds: Callable[[float], bool], wanted: str) -> None:
    if not (math.isfinite(number) and holds(number)):
        raise InputError(f"{what}: {name} is {number}; it must be {wanted}")
