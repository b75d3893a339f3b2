"""Patterns of nodes that become one kernel of the target: one file per operator family, one row per operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxqat.insertion.groups import Group, Skip
from onnxqat.insertion.patterns import elementwise, pooling, weighted
from onnxqat.targets import Target

Matcher = Callable[[ir.Node, Target], Group | Skip]

MATCHERS: dict[str, Matcher] = {
    "Conv": weighted.match,
    "ConvTranspose": weighted.match,
    "Gemm": weighted.match,
    "MatMul": weighted.match,
    "Add": elementwise.match,
    "Sub": elementwise.match,
    "Mul": elementwise.match,
    "Div": elementwise.match,
    "Min": elementwise.match,
    "Max": elementwise.match,
    "Pow": elementwise.match,
    "Sqrt": elementwise.match,
    "Concat": elementwise.match,
    "AveragePool": pooling.match,
    "GlobalAveragePool": pooling.match,
    "ReduceMean": pooling.match,
    "ReduceSum": pooling.match,
    "LeakyRelu": pooling.match,
    "Sigmoid": pooling.match,
}
